"""Several adapters as one: active together, and as a new adapter that is their weighted sum."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from tests.tuner.models import INPUTS, activate, batch, layers, make, move, output, train, trained_names, with_adapters

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@settings(max_examples=15)
@given(
    kind=st.sampled_from(sorted(INPUTS)),
    scales=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    trainable=st.sampled_from(["coefficients", "both"]),
)
def test_active_adapters_change_the_weight_by_the_sum_of_their_changes(kind, scales, trainable):
    names = ["a", "b", "k"][: len(scales)]
    model = with_adapters(kind, *names, trainable=trainable)
    activate(model, names)
    for name, scale in zip(names, scales, strict=True):
        model.set_scale(name, scale)
    for layer in layers(model):
        total = layer.base_weight.double()
        for name, scale in zip(names, scales, strict=True):
            layer.set_scale(name, 1.0)
            total = total + scale * layer.get_delta_weight(name).double()
            layer.set_scale(name, scale)
        torch.testing.assert_close(layer.weight.double(), total, **CLOSE)


@pytest.mark.parametrize("kind", INPUTS)
def test_the_order_of_adapters_does_not_matter_to_the_last_bit(kind):
    model, x = with_adapters(kind, "a", "b", "k"), batch(kind)
    outputs = []
    for names in itertools.permutations("abk"):
        activate(model, list(names))
        outputs.append(output(model, x))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("kind", INPUTS)
def test_a_weighted_sum_equals_the_sum_of_the_weights_and_is_neither_active_nor_trained(kind):
    model, x = with_adapters(kind, "a", "b"), batch(kind)
    model.set_scale("b", 0.5)
    model.add_weighted_adapter(["a", "b"], [0.7, -1.2], "sum")
    assert model.active_adapters == ["a"]
    assert not any(name.endswith(".sum") for name in trained_names(model))
    for layer in layers(model):
        expected = 0.7 * layer.get_delta_weight("a") - 1.2 * layer.get_delta_weight("b")
        torch.testing.assert_close(layer.get_delta_weight("sum"), expected, **CLOSE)
    model.set_adapter("sum")
    model.set_scale("a", 0.7)
    model.set_scale("b", -0.6)
    summed = output(model, x)
    activate(model, ["a", "b"])
    torch.testing.assert_close(summed, output(model, x), **CLOSE)


def test_a_weighted_sum_of_different_targets_ranks_and_parametrisations_is_exact(tmp_path):
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], rank=3), "a")
    model.add_adapter("b", SVDCoefficientConfig(target_modules=["lin0", "lin1"], rank=5, parametrization="relative"))
    for name in ("a", "b"):
        model.set_adapter(name)
        move(model, name)
    model.add_weighted_adapter(["a", "b"], [2.0, 1.0], "sum")
    assert model.peft_config["sum"].rank_pattern == {"lin0": 5}
    lin0, lin1 = layers(model)
    expected = 2 * lin0.get_delta_weight("a") + lin0.get_delta_weight("b")
    torch.testing.assert_close(lin0.get_delta_weight("sum"), expected, **CLOSE)
    torch.testing.assert_close(lin1.get_delta_weight("sum"), lin1.get_delta_weight("b"), **CLOSE)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    x = batch("MLP")
    model.set_adapter("sum")
    expected = output(model, x)
    fresh = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]))
    fresh.load_adapter(tmp_path / "sum", "sum")
    fresh.set_adapter("sum")
    assert torch.equal(output(fresh, x), expected)


def test_a_sum_takes_over_the_modules_to_save_of_the_one_adapter_that_has_them():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], modules_to_save=["lin1"]), "a")
    train(model, batch("MLP"))
    model.add_adapter("b", SVDCoefficientConfig(target_modules=["lin0"]))
    model.add_weighted_adapter(["a", "b"], [1.0, 1.0], "sum")
    copies = model.base_model.model.lin1.modules_to_save
    assert torch.equal(copies["sum"].weight, copies["a"].weight)


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "kind", "message"),
    [
        (["a", "x"], [1, 1], "sum", "linear", "Adapter x does not exist; there are a, b, trained"),
        (["a", "b"], [1], "sum", "linear", r"weights=\[1\] has to hold one finite number for each"),
        (["a"], [float("nan")], "sum", "linear", r"weights=\[nan\]"),
        ([], [], "sum", "linear", "adapters is empty"),
        (["a"], [1], "b", "linear", "Adapter 'b' already exists"),
        (["a"], [1], "sum", "svd", "combination_type='svd' is not possible; 'linear' is"),
        (["a", "trained"], [1, 1], "sum", "linear", "Adapter 'trained' has trained bases"),
    ],
)
def test_sums_that_do_not_exist_are_refused_and_leave_nothing(adapters, weights, name, kind, message):
    model = with_adapters("MLP", "a", "b")
    model.add_adapter("trained", SVDCoefficientConfig(target_modules=["lin0"], trainable="both"))
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(adapters, weights, name, kind)
    assert sorted(model.peft_config) == ["a", "b", "trained"]
    assert all("sum" not in layer.states for layer in layers(model))


def test_two_copies_of_a_module_have_no_sum():
    choices = {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(**choices), "a")
    model.add_adapter("b", SVDCoefficientConfig(**choices))
    with pytest.raises(ValueError, match="target the same module with modules_to_save: a, b"):
        model.add_weighted_adapter(["a", "b"], [1, 1], "sum")
