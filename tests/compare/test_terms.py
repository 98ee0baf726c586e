"""Rows with an expansion and of the attention layers, from the search of their rates to the page, with their costs."""

import json

import pytest
from safetensors import safe_open

from samparser.compare import compare, parse_experiment

# Of the tiny SAM: the neck's ranks are 24 and 32; qkv and proj of each of two blocks have 24.
TRAINED = {
    "pairs": 2 * 3,
    "gradient": 2 * 1,
    "coefficients-pairs": 24 + 32 + 2 * 3,
    "attention-pairs": 4 * (24 + 2) + 24 + 32 + 2 * 2,
}


@pytest.fixture(scope="module")
def finished(content, data_root, tmp_path_factory):
    """A comparison of such rows with the decoder, with one seed and no search; and the folder that it wrote."""
    small = json.loads(json.dumps(content))
    small.pop("search")
    small.pop("paper")
    small["seeds"] = [0]
    terms = {"expansion": "pairs", "expansion_rank": 2}
    small["methods"] = [
        {"method": "decoder"},
        {"method": "expansion", "name": "pairs", "options": {"rank": 3}},
        {"method": "expansion", "name": "gradient", "options": {"kind": "gradient", "rank": 1}},
        {
            "method": "samparser-coefficients",
            "name": "coefficients-pairs",
            "options": {**terms, "expansion_rank": 3},
        },
        {"method": "attention", "name": "attention-pairs", "options": {"neck": True, **terms}},
    ]
    output = tmp_path_factory.mktemp("terms") / "small"
    report = compare(parse_experiment(small), output=output, data_root=data_root, say=lambda line: None)
    return output, report


def numbers_in(adapter) -> int:
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        trained = [name for name in file.keys() if name[-2:] in ("_c", "_d")]  # noqa: SIM118
        return sum(file.get_tensor(name).size for name in trained)


def test_terms_count_as_trained_in_results_costs_and_files_alike(finished):
    output, report = finished
    for row, count in TRAINED.items():
        result = json.loads((output / "results" / f"toy--{row}--seed0.json").read_text())
        adapter = output / "runs" / f"toy--{row}--seed0" / "adapter"
        size = (adapter / "adapter_model.safetensors").stat().st_size
        assert result["trained"]["total"] == report.costs[row]["trained"] == numbers_in(adapter) == count
        assert result["trained"]["bytes"] == report.costs[row]["bytes"] == size
        assert (output / "runs" / f"toy--{row}--seed0" / "expansion.json").is_file()
        assert "share of the gradient's signal" in (output / "logs" / f"toy--{row}--seed0.log").read_text()


def test_terms_train_from_the_cache_in_the_neck_and_from_pixels_in_the_attention_layers(finished):
    output, report = finished
    for row in TRAINED:
        result = json.loads((output / "results" / f"toy--{row}--seed0.json").read_text())
        assert result["time"]["cached"] == (row != "attention-pairs")
        macs = report.costs[row]["macs"]
        assert (macs["cached_step"] is None) == (row == "attention-pairs")
        assert macs["forward"] >= macs["merged"] == report.costs["decoder"]["macs"]["forward"]


def test_the_page_has_a_line_of_scores_and_of_costs_for_each_row(finished):
    page = (finished[0] / "small.md").read_text()
    scores, costs = page.split("## Cost")
    for row in TRAINED:
        assert f"| {row} |" in scores
        assert f"| {row} |" in costs
