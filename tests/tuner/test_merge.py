"""Merging, unmerging, unloading: bit for bit where that is possible, one rounding where it is not."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import convert_to_lora, get_peft_model, set_peft_model_state_dict
from torch import nn

from samparser import SVDCoefficientConfig
from tests.tuner.models import INPUTS, activate, batch, layers, make, move, output, train, with_adapters

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CHOICES = [{}, {"parametrization": "relative"}, {"trainable": "both"}, {"save_basis": True}, {"rank": 2}]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_merging_keeps_the_output_and_unmerging_gives_the_weights_back_bit_for_bit(kind, choices):
    model, x = with_adapters(kind, "a", **choices), batch(kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = output(model, x)
    model.merge_adapter()
    torch.testing.assert_close(output(model, x), tuned, **CLOSE)
    with model.disable_adapter():
        assert torch.equal(output(model, x), output(make(kind), x))
    model.unmerge_adapter()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(output(model, x), tuned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), size=st.floats(0, 3))
def test_merging_rounds_once_and_unmerging_undoes_it(dtype, seed, size):
    torch.manual_seed(seed)
    plain = nn.Linear(7, 5).to(dtype)
    model = get_peft_model(nn.ModuleDict({"x": copy.deepcopy(plain)}), SVDCoefficientConfig(target_modules=["x"]))
    move(model, by=size, seed=seed)
    (layer,) = layers(model)
    exact = plain.weight.double() + layer.get_delta_weight("default").double()
    model.merge_adapter()
    # One rounding to the weight's dtype, and the rounding of float32 sums before it.
    half_step = exact.abs() * torch.finfo(dtype).eps / 2 + 4 * torch.finfo(torch.float32).eps
    if dtype != torch.float64:
        assert bool(((layer.base_weight.double() - exact).abs() <= 1.01 * half_step).all())
    model.unmerge_adapter()
    assert torch.equal(layer.base_weight, plain.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_merging_a_fresh_adapter_leaves_the_model_bit_for_bit(dtype, tiny_sam):
    before = {name: p.clone() for name, p in tiny_sam.to(dtype).state_dict().items()}
    model = get_peft_model(tiny_sam, SVDCoefficientConfig(target_modules=["neck"]))
    after = model.merge_and_unload().state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", INPUTS)
def test_merged_and_unloaded_models_are_plain_ones(kind):
    model, x = with_adapters(kind, "a"), batch(kind)
    tuned = output(model, x)
    merged = copy.deepcopy(model).merge_and_unload()
    unloaded = model.unload()
    for plain, expected in ((merged, tuned), (unloaded, output(make(kind), x))):
        assert [type(module) for module in plain.modules()] == [type(module) for module in make(kind).modules()]
        assert plain.state_dict().keys() == make(kind).state_dict().keys()
        assert not hasattr(plain, "peft_config")
        torch.testing.assert_close(output(plain, x), expected, **CLOSE)


def test_merging_with_a_trained_decoder_gives_a_plain_sam(tiny_sam):
    x = {
        "pixel_values": torch.randn(1, 3, 64, 64),
        "input_boxes": torch.tensor([[[5.0, 5, 40, 40], [10, 20, 50, 60]]]),
        "multimask_output": False,
    }
    names = {name for name, _ in tiny_sam.named_modules()}
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
    model = get_peft_model(tiny_sam, config)
    move(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.mul_(1.1)
    tuned = output(model, **x).pred_masks
    plain = model.merge_and_unload()
    assert {name for name, _ in plain.named_modules()} == names
    torch.testing.assert_close(output(plain, **x).pred_masks, tuned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [["b"], ["a", "b"], ["b", "a"]])
def test_named_adapters_are_merged_and_no_others(names):
    model, x = with_adapters("ConvNet", "a", "b", "k"), batch("ConvNet")
    activate(model, names)
    expected = output(model, x)
    model.set_adapter("k")
    model.merge_adapter(names)
    torch.testing.assert_close(output(model, x), expected, **CLOSE)
    assert [set(layer.merged_adapters) for layer in layers(model)] == [set(names)] * 3


def test_merging_one_after_the_other_equals_merging_together_bit_for_bit():
    together, apart = with_adapters("MLP", "a", "b"), with_adapters("MLP", "a", "b")
    together.merge_adapter(["a", "b"])
    apart.merge_adapter(["b"])
    with pytest.warns(
        UserWarning, match="Already following adapters were merged b. You are now additionally merging a"
    ):
        apart.merge_adapter(["a"])
    for one, other in zip(layers(together), layers(apart), strict=True):
        assert torch.equal(one.base_weight, other.base_weight)
    apart.unmerge_adapter()
    plain = make("MLP")
    assert torch.equal(layers(apart)[0].base_weight, plain.lin0.weight)


def test_merging_and_unmerging_twice_warn_and_change_nothing():
    model = with_adapters("MLP", "a")
    model.merge_adapter()
    merged = layers(model)[0].base_weight.clone()
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert torch.equal(layers(model)[0].base_weight, merged)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged. No adapter is merged into lin0"):
        layers(model)[0].unmerge()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_refuses_values_that_are_not_finite_and_leaves_the_weight(value):
    model = with_adapters("MLP", "a", "b")
    plain = make("MLP")
    with torch.no_grad():
        layers(model)[0].svd_coefficient_p["b"][2] = value
    with pytest.raises(
        ValueError,
        match=r"NaNs detected in the merged weights.*adapter b .*into lin0.*give \d+ of 120 values.*left as it was",
    ):
        model.merge_adapter(["b"], safe_merge=True)
    assert torch.equal(layers(model)[0].base_weight, plain.lin0.weight)
    assert not layers(model)[0].merged_adapters
    model.merge_adapter(["a"], safe_merge=True)
    assert layers(model)[0].merged_adapters == ["a"]


@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_a_safe_merge_that_fails_in_the_last_layer_leaves_all_layers_as_they_were(how):
    model, x = with_adapters("MLP", "a", "b"), batch("MLP")
    plain, before = make("MLP"), output(model, x)
    with torch.no_grad():
        layers(model)[1].svd_coefficient_p["b"][2] = float("nan")
    with pytest.raises(ValueError, match=r"NaNs detected in the merged weights.*adapter b .* merged into lin1"):
        getattr(model, how)(safe_merge=True, adapter_names=["b"])
    assert [layer.merged_adapters for layer in layers(model)] == [[], []]
    for layer, name in zip(layers(model), ("lin0", "lin1"), strict=True):
        assert torch.equal(layer.base_weight, plain.get_submodule(name).weight)
    assert torch.equal(output(model, x), before)
    merged = model.merge_and_unload(safe_merge=True, adapter_names=["a"])
    torch.testing.assert_close(output(merged, x), before, **CLOSE)


def test_a_merge_in_half_precision_that_overflows_is_not_finite():
    model = get_peft_model(nn.ModuleDict({"x": nn.Linear(4, 4).half()}), SVDCoefficientConfig(target_modules=["x"]))
    with torch.no_grad():
        layers(model)[0].svd_coefficient_p["default"].mul_(1e6)
    with pytest.raises(ValueError, match=r"infinite in torch.float16"):
        model.merge_adapter(safe_merge=True)


def test_a_change_too_small_for_half_precision_is_not_lost_before_merging():
    layer = nn.Linear(64, 64).bfloat16()
    model = get_peft_model(nn.ModuleDict({"x": layer}), SVDCoefficientConfig(target_modules=["x"]))
    (ours,) = layers(model)
    parameter = ours.svd_coefficient_p["default"]
    assert parameter.dtype == torch.float32
    with torch.no_grad():
        parameter.add_(1e-5 * parameter)
    assert ours.get_delta_weight("default").dtype == torch.float32
    assert ours.get_delta_weight("default").abs().max() > 0


def test_linear_layers_convert_to_lora_and_convolutions_say_no():
    model, x = with_adapters("MLP", "default", rank=5), batch("MLP")
    assert model.supports_lora_conversion()
    config, tensors = convert_to_lora(model, rank=5)
    lora = get_peft_model(make("MLP"), config)
    set_peft_model_state_dict(lora, tensors)
    torch.testing.assert_close(output(lora, x), output(model, x), rtol=1e-4, atol=1e-4)
    assert not with_adapters("ConvNet", "default").supports_lora_conversion()
    assert with_adapters("Mixed", "default", targets=["conv1d"]).supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(with_adapters("ConvNet", "default"), rank=2)


def test_training_goes_on_after_merging_and_unmerging():
    model, x = with_adapters("MLP", "a"), batch("MLP")
    twin = copy.deepcopy(model)
    model.merge_adapter()
    model.unmerge_adapter()
    for net in (model, twin):
        train(net, x)
    assert torch.equal(output(model, x), output(twin, x))
