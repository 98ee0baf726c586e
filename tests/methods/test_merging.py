import pytest
import torch
from peft import get_peft_model
from transformers import SamModel

from samparser.methods import METHODS, build, load_trained, merged, save_trained
from samparser.methods.registry import applied_method
from samparser.sam.families import Sam
from samparser.tuner import SVDCoefficientConfig
from tests.conftest import make_tiny_sam

from .conftest import ALL, choose_terms, masks, tuned_tiny_sam

MERGEABLE = tuple(name for name in ALL if METHODS[name].mergeable)


def test_only_bottleneck_adapters_cannot_be_merged():
    assert set(ALL) - set(MERGEABLE) == {"adapter", "adapter-houlsby"}


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_merged_model_is_a_plain_sam_with_the_same_masks(name, tiny_inputs):
    model = tuned_tiny_sam(name)
    before = masks(model, tiny_inputs)
    plain = merged(model)
    assert type(plain) is SamModel
    reference = make_tiny_sam()
    assert {key: t.shape for key, t in plain.state_dict().items()} == {
        key: t.shape for key, t in reference.state_dict().items()
    }
    assert [type(m) for m in plain.modules()] == [type(m) for m in reference.modules()]
    torch.testing.assert_close(masks(plain, tiny_inputs), before, rtol=1e-4, atol=1e-4 * before.abs().max().item())
    assert torch.equal(masks(model, tiny_inputs), before), "the tuned model has changed"
    assert applied_method(plain) is None


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_before_training_gives_back_the_base_bit_for_bit(name):
    plain = merged(build(name, make_tiny_sam()))
    for key, tensor in make_tiny_sam().state_dict().items():
        if name.startswith("bases"):  # trained bases make the weight anew: (U p) Vh, rounded
            torch.testing.assert_close(plain.state_dict()[key], tensor)
        else:
            assert torch.equal(plain.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "samparser", "decoder"])
def test_merging_in_place_gives_the_same_weights(name, tiny_inputs):
    model = tuned_tiny_sam(name)
    copied = merged(model).state_dict()
    taken_apart = merged(model, in_place=True).state_dict()
    assert copied.keys() == taken_apart.keys()
    assert all(torch.equal(tensor, taken_apart[key]) for key, tensor in copied.items())


@pytest.mark.parametrize("name", ["lora", "samparser"])
def test_a_merged_model_saves_and_loads_as_a_plain_checkpoint(name, tmp_path, tiny_inputs):
    plain = merged(tuned_tiny_sam(name))
    plain.save_pretrained(tmp_path)
    assert torch.equal(masks(SamModel.from_pretrained(tmp_path), tiny_inputs), masks(plain, tiny_inputs))


@pytest.mark.parametrize("name", ["adapter", "adapter-houlsby"])
def test_a_bottleneck_adapter_is_not_merged_and_the_reason_is_given(name, tiny_sam):
    with pytest.raises(ValueError, match=rf"'{name}' cannot be merged: a bottleneck adapter has a nonlinearity"):
        merged(build(name, tiny_sam))


def test_a_model_with_one_broken_layer_is_left_whole(tiny_inputs):
    model = tuned_tiny_sam("lora")
    with torch.no_grad():
        model.vision_encoder.layers[1].attn.qkv.value_b.fill_(float("nan"))
    with pytest.raises(ValueError, match="576 values that are not finite"):
        merged(model, in_place=True)
    assert type(model.vision_encoder.layers[0].attn.qkv).__name__ == "QueryValueLoRA"


def test_a_plain_model_comes_back_as_it_is(tiny_sam, tiny_inputs):
    plain = merged(tiny_sam)
    assert plain is not tiny_sam
    assert torch.equal(masks(plain, tiny_inputs), masks(tiny_sam, tiny_inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_weights_keep_the_dtype_of_the_base(name, dtype, tmp_path, tiny_inputs):
    model = build(name, make_tiny_sam().to(dtype))
    choose_terms(model, {key: tensor.to(dtype) for key, tensor in tiny_inputs.items()})
    assert {tensor.dtype for tensor in merged(model).state_dict().values()} == {dtype}
    save_trained(model, tmp_path)
    loaded = load_trained(make_tiny_sam().to(dtype), tmp_path)
    assert {tensor.dtype for tensor in merged(loaded).state_dict().values()} == {dtype}


@pytest.mark.parametrize(("name", "times"), [("samparser", 1), ("lora", 1), ("decoder", 1), ("zero-shot", 0)])
def test_only_what_is_tuned_keeps_the_single_mask_that_was_trained(name, times, monkeypatch):
    kept = []
    monkeypatch.setattr(Sam, "keep_single_mask", lambda self, model: kept.append(type(model)) or True)
    merged(build(name, make_tiny_sam()))
    assert kept == [SamModel] * times


def test_a_model_of_no_family_merges_too():
    config = SVDCoefficientConfig(target_modules=["0"])
    plain = torch.nn.Sequential(torch.nn.Linear(3, 2))
    assert type(merged(get_peft_model(plain, config))[0]) is torch.nn.Linear
