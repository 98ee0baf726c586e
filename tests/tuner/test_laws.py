"""Laws of an adapted layer, for layers of any shape, kernel, stride, groups and dtype and for any coefficients."""

import copy
import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from samparser.tuner.factors import unfold
from tests.tuner.models import move, output
from tests.tuner.strategies import DTYPES, LAYERS, adapted, input_for, wrap

CHOICES = st.sampled_from(
    [{}, {"parametrization": "relative"}, {"trainable": "both"}, {"save_basis": True}, {"rank": 2}, {"scaling": -0.5}]
)
SEEDS = st.integers(0, 1000)
SIZES = st.floats(0, 3)


def plain_layer(layer: torch.nn.Module, dtype: torch.dtype, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return layer.to(dtype).eval()


@settings(max_examples=25)
@given(layer=LAYERS, dtype=DTYPES, choices=CHOICES, seed=SEEDS, size=SIZES)
def test_merging_and_unmerging_is_the_identity_and_the_merged_layer_the_adapted_one(layer, dtype, choices, seed, size):
    plain = plain_layer(layer, dtype, seed)
    model, x = wrap(copy.deepcopy(plain), **choices), input_for(plain)
    move(model, by=size, seed=seed)
    ours = adapted(model)
    tuned = output(ours, x)
    model.merge_adapter()
    assert torch.equal(output(ours, x), tuned)
    model.unmerge_adapter()
    assert torch.equal(ours.base_weight, plain.weight)
    assert torch.equal(output(ours, x), tuned)


@settings(max_examples=25)
@given(layer=LAYERS, dtype=DTYPES, choices=CHOICES, seed=SEEDS, size=SIZES)
def test_a_disabled_layer_is_the_base_layer_bit_for_bit_merged_or_not(layer, dtype, choices, seed, size):
    plain = plain_layer(layer, dtype, seed)
    model, x = wrap(copy.deepcopy(plain), **choices), input_for(plain)
    move(model, by=size, seed=seed)
    expected = output(plain, x)
    for merged in (False, True):
        if merged:
            model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(output(adapted(model), x), expected)
    model.unmerge_adapter()
    assert torch.equal(output(model.unload()["layer"], x), expected)


@settings(max_examples=25)
@given(layer=LAYERS, seed=SEEDS, weights=st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_a_weighted_sum_of_adapters_is_the_sum_in_weight_space(layer, seed, weights):
    plain = plain_layer(layer, torch.float64, seed)
    model = wrap(copy.deepcopy(plain), "a", "b")
    ours = adapted(model)
    expected = sum(weight * ours.get_delta_weight(name) for name, weight in zip("ab", weights, strict=True))
    model.add_weighted_adapter(["a", "b"], weights, "sum")
    torch.testing.assert_close(ours.get_delta_weight("sum"), expected, rtol=1e-10, atol=1e-10)
    model.set_adapter("sum")
    torch.testing.assert_close(ours.weight, plain.weight + expected, rtol=1e-10, atol=1e-10)
    # The reconstructed weight is u diag(p) vh with the summed coefficients, wherever these are free.
    _, p = ours.spectrum("sum")
    whole = (ours.bases.u * p) @ ours.bases.vh
    torch.testing.assert_close(
        unfold(whole, plain.weight.shape, fan_in_fan_out=ours.fan_in_fan_out), ours.weight, rtol=1e-7, atol=1e-7
    )


@settings(max_examples=20)
@given(layer=LAYERS, dtype=DTYPES, seed=SEEDS)
def test_the_order_of_adapters_does_not_matter_to_a_layer(layer, dtype, seed):
    plain = plain_layer(layer, dtype, seed)
    names, x = ["a", "b", "k"], input_for(plain)
    model = wrap(plain, *names)
    outputs, merged = [], []
    for order in itertools.permutations(names):
        model.base_model.set_adapter(list(order))
        outputs.append(output(adapted(model), x))
        model.merge_adapter(list(order))
        merged.append(adapted(model).base_weight.clone())
        model.unmerge_adapter()
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert all(torch.equal(merged[0], other) for other in merged[1:])


@settings(max_examples=10)
@given(layer=LAYERS, dtype=DTYPES, choices=CHOICES, seed=SEEDS, size=SIZES)
def test_a_saved_layer_comes_back_bit_for_bit(tmp_path_factory, layer, dtype, choices, seed, size):
    plain = plain_layer(layer, dtype, seed)
    model, x = wrap(copy.deepcopy(plain), **choices), input_for(plain)
    move(model, by=size, seed=seed)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(torch.nn.ModuleDict({"layer": plain}), folder)
    assert torch.equal(adapted(loaded).weight, adapted(model).weight)
    assert torch.equal(output(adapted(loaded), x), output(adapted(model), x))
