import contextlib
import io
import json

import pytest

from examples.table4 import PAPER, Arguments, main


@pytest.fixture(scope="module")
def printed_and_written(tmp_path_factory):
    path = tmp_path_factory.mktemp("table4") / "results" / "table4.json"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(Arguments(methods=list(PAPER), output=str(path)))
    return printed.getvalue(), json.loads(path.read_text())


@pytest.fixture
def table(printed_and_written):
    return {row["method"]: row for row in printed_and_written[1]["rows"]}


@pytest.mark.parametrize(
    ("name", "trained", "extra_macs"),
    [
        ("decoder", 4_058_340, 0),
        ("lora", 4_205_796, 683_016_192),
        ("adapter", 7_657_188, 14_731_444_224),
        ("samparser", 4_058_852, 536_870_912),
    ],
)
def test_parameters_and_macs_are_exact(table, name, trained, extra_macs):
    assert table[name]["trained"] == trained
    assert table[name]["extra_forward_macs"] == extra_macs
    assert table["decoder"]["forward_macs"] == 487_851_018_752


def test_the_extra_macs_are_those_of_the_layers_worked_out_by_hand(table):
    tokens, width, out = 64 * 64, 768, 256
    factored = tokens * out * ((width + out) + (9 * out + out)) - tokens * (out * width + out * 9 * out)
    assert table["samparser"]["extra_forward_macs"] == factored
    bottleneck = tokens * 12 * (2 * width * 192 + 25 * 192)
    assert table["adapter"]["extra_forward_macs"] == bottleneck
    in_windows = 25 * 14 * 14  # 64 is padded to 70 = 5 windows of 14 a side
    assert table["lora"]["extra_forward_macs"] == (8 * in_windows + 4 * tokens) * 2 * (4 * width + width * 4)


def test_the_paper_s_figures_are_met(table):
    for name, (paper_k, paper_g) in PAPER.items():
        assert round(table[name]["extra_trained"] / 1024, 1) == paper_k, name
        assert table[name]["extra_forward_macs"] / 1e9 == pytest.approx(paper_g, abs=0.15), name


def test_only_the_adapter_costs_anything_when_deployed(table):
    assert {name: row["extra_merged_macs"] for name, row in table.items()} == {
        "decoder": 0,
        "lora": 0,
        "samparser": 0,
        "adapter": 14_731_444_224,
    }


def test_a_step_of_the_method_costs_little_more_than_the_decoder_s_and_less_than_half_of_lora_s(table):
    steps = {name: row["step_macs"] for name, row in table.items()}
    assert steps["samparser"] == 494_963_020_288
    assert steps["samparser"] / steps["decoder"] < 1.01
    assert steps["lora"] / steps["samparser"] > 2
    assert steps["samparser"] / table["samparser"]["cached_step_macs"] > 40


def test_what_trains_upstream_of_the_neck_cannot_be_cached(table):
    assert {name for name, row in table.items() if row["cached_step_macs"] is None} == {"lora", "adapter"}


def test_the_table_is_markdown_with_the_paper_and_the_conventions_beside_it(printed_and_written):
    printed, written = printed_and_written
    assert "| samparser | 3963.7 | +0.5 | +0.5 | 488.39 | +0.54 | +0.6 | +0.00 | 495.0 | 12.1 |" in printed
    assert "1 GMAC is 10^9 multiplications" in printed
    assert written["model"] == "SAM ViT-B, 1024 x 1024 pixels"
    assert set(written["versions"]) == {"samparser", "torch", "transformers"}
