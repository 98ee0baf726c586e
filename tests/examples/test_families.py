"""The count of every family's cached forward, against products counted by hand and against the tables of the docs."""

import sys

import pytest
import torch
import transformers

from tests.sam.tiny import TINY, make_tiny

from .test_examples import EXAMPLES


@pytest.fixture(scope="module")
def families():
    sys.path.insert(0, str(EXAMPLES))
    try:
        from benchmarks import families, published
    finally:
        sys.path.remove(str(EXAMPLES))
    families.PUBLISHED = published.PUBLISHED
    return families


@pytest.mark.parametrize("model_type", TINY)
def test_every_family_is_counted(families, model_type):
    model = make_tiny(model_type)
    counts = families.count_family(model.config)
    assert counts.before_neck > 0
    assert counts.neck > 0
    assert 0 < counts.further_box <= counts.decoder
    rest = counts.neck + counts.decoder
    assert counts.forwards == pytest.approx((counts.before_neck + rest) / rest)


def test_the_products_of_a_small_sam_are_those_counted_by_hand(families):
    counts = families.count_family(make_tiny("sam").config)
    places, width, out = 8 * 8, 24, 32
    assert counts.neck == places * out * (width + 9 * out)
    assert counts.feature_bytes == 2 * places * width


def test_the_maps_of_a_small_sam_2_pass_the_neck_and_two_convolutions_of_the_decoder(families):
    counts = families.count_family(make_tiny("sam2").config)
    stages = [(16, 8), (8, 16), (4, 32), (2, 64)]
    neck = sum(side**2 * 32 * width for side, width in stages)
    assert counts.neck == neck + 16**2 * 32 * (32 // 8) + 8**2 * 32 * (32 // 4)
    assert counts.feature_bytes == 2 * sum(side**2 * width for side, width in stages)


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
def test_published_sizes_have_the_counted_parameters_and_shares(families, name, parameters, forwards):
    config = families.PUBLISHED[name]()
    with torch.device("meta"):
        model = getattr(transformers, families.FAMILIES[config.model_type].model_class)(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert round(families.count_family(config).forwards) == forwards


def test_a_model_that_cannot_be_built_is_named_below_the_table(families, monkeypatch):
    def missing():
        raise ImportError("no\n timm here")

    table = families.measure_families({"edgetam": missing, "small": lambda: make_tiny("sam_hq").config})
    assert "| small |" in table
    assert table.endswith("- edgetam is not counted: no timm here")
