"""The table of what features leave in every family, and the configs of the published sizes."""

import sys

import pytest

from samparser.methods.cost import count_parameters, forward_cost, meta_model, method_cost
from tests.sam.tiny import TINY, make_tiny

from .test_examples import EXAMPLES


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from benchmarks import families, published
    finally:
        sys.path.remove(str(EXAMPLES))
    return {"measure": families.measure_families, "published": published.PUBLISHED}


def rows(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in lines}


def test_every_family_has_a_row_of_its_counts(benchmarks):
    configs = {model_type: (lambda name=model_type: make_tiny(name).config) for model_type in TINY}
    table = rows(benchmarks["measure"](configs))
    for model_type, config in configs.items():
        cost = forward_cost(config())
        rest = cost.neck + cost.decoder
        before, neck, decoder, further, forward, step, features = table[model_type]
        assert [before, neck, decoder, further] == [
            f"{macs / 1e9:.2f}" for macs in (cost.before_neck, cost.neck, cost.decoder, cost.further_box)
        ]
        assert forward == f"1/{(cost.before_neck + rest) / rest:.0f}"
        method = method_cost("samparser", config=config())
        cached = method.step_macs - cost.before_neck
        assert step == f"{cached / 1e9:.1f}, 1/{method.step_macs / cached:.0f}"
        assert features == f"{cost.feature_bytes / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("name", "parameters", "forwards"),
    [
        ("sam-vit-base", 93_735_728, 97),
        ("sam-hq-vit-base", 94_806_832, 43),
        ("sam2.1-hiera-tiny", 31_440_721, 26),
        ("sam2.1-hiera-small", 38_538_577, 32),
        ("sam2.1-hiera-base-plus", 73_328_401, 53),
        ("sam2.1-hiera-large", 216_924_865, 128),
        ("sam3-tracker", 458_260_369, 25),
    ],
)
def test_published_sizes_have_the_counted_parameters_and_shares(benchmarks, name, parameters, forwards):
    config = benchmarks["published"][name]()
    assert count_parameters(meta_model(config))[0] == parameters
    assert round(1 / forward_cost(config).cached_share) == forwards


def test_a_model_that_cannot_be_built_is_named_below_the_table(benchmarks):
    def missing():
        raise ImportError("no\n timm here")

    table = benchmarks["measure"]({"edgetam": missing, "small": lambda: make_tiny("sam_hq").config})
    assert "| small |" in table
    assert table.endswith("- edgetam is not counted: no timm here")
