"""Sums and differences of adapters with their scores."""

import pytest
import torch

from samparser.inspection import combinations_table, combine, combined, open_adapters, save_combination
from samparser.inspection.arithmetic import sums_and_differences
from samparser.methods import load_model
from samparser.tuner import SVDCoefficientLayer


def weights_of(model):
    layers = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
    return {layer.layer_name: layer.weight - layer.base_weight for layer in layers}


@torch.no_grad()
def test_a_sum_changes_the_weights_by_the_sum_and_leaves_nothing_behind(folders):
    model, _ = open_adapters([folders["plain"], folders["pairs"]])
    changes = {}
    for name in ("plain", "pairs"):
        model.set_adapter(name)
        changes[name] = weights_of(model)
    with combined(model, {"plain": 1.0, "pairs": -0.5}) as name:
        assert name in model.peft_config
        for layer, change in weights_of(model).items():
            expected = changes["plain"][layer] - 0.5 * changes["pairs"][layer]
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)
    assert list(model.peft_config) == ["plain", "pairs"]
    assert model.active_adapters == ["pairs"]


def test_a_sum_of_one_is_the_adapter_and_a_difference_of_equals_the_base(folders, evaluation):
    model, _ = open_adapters([folders["plain"], folders["plain"]])
    base, alone, nothing = combine(model, [{"plain": 1.0}, {"plain": 1.0, "plain-2": -1.0}], evaluation)
    expected, _ = load_model(folders["plain"])
    assert alone.score.miou == evaluation.table(expected).miou
    assert (nothing.score.miou, nothing.gain.miou) == (base.score.miou, 0)
    assert base.weights == {}
    lines = combinations_table([base, alone, nothing]).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[1:]] == ["base model", "plain", "plain - plain-2"]


@torch.no_grad()
def test_a_saved_sum_is_an_adapter_like_any_other(folders, tmp_path):
    model, _ = open_adapters([folders["plain"], folders["pairs"]])
    save_combination(model, {"plain": 1.0, "pairs": -1.0}, tmp_path / "sum")
    assert {file.name for file in (tmp_path / "sum").iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    loaded, _ = load_model(tmp_path / "sum")
    with combined(model, {"plain": 1.0, "pairs": -1.0}):
        expected = weights_of(model)
    for layer, change in weights_of(loaded).items():
        torch.testing.assert_close(change, expected[layer], rtol=1e-5, atol=1e-6)
    reopened, _ = open_adapters([tmp_path / "sum", folders["plain"]])
    assert list(reopened.peft_config) == ["sum", "plain"]


def test_adapters_without_a_sum_say_why_and_leave_nothing(folders):
    model, _ = open_adapters([folders["decoder"], folders["decoder"]])
    with (
        pytest.raises(ValueError, match="copies have no sum"),
        combined(model, {"decoder": 1.0, "decoder-2": 1.0}),
    ):
        pass
    assert list(model.peft_config) == ["decoder", "decoder-2"]


def test_all_sums_and_differences_of_two():
    assert sums_and_differences(["a", "b", "c"]) == [
        *({"a": 1.0}, {"b": 1.0}, {"c": 1.0}),
        *({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": -1.0}, {"a": 1.0, "c": 1.0}),
        *({"a": 1.0, "c": -1.0}, {"b": 1.0, "c": 1.0}, {"b": 1.0, "c": -1.0}),
    ]
