import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from samparser.methods import METHODS, build, method
from samparser.methods.restoring import unchanged_on_error
from tests.conftest import make_tiny_sam

from .conftest import masks


def looks(model):
    """Everything of a model but the values of its weights."""
    return (
        {name: (type(module), module.training, set(vars(module))) for name, module in model.named_modules()},
        {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()},
        {name: id(buffer) for name, buffer in model.named_buffers()},
    )


def test_a_model_is_as_it_was_when_the_block_fails(tiny_sam, tiny_inputs):
    tiny_sam.vision_encoder.requires_grad_(False)
    before, given = looks(tiny_sam), masks(tiny_sam, tiny_inputs)

    def fail():
        with unchanged_on_error(tiny_sam):
            get_peft_model(tiny_sam, LoraConfig(target_modules=["qkv"], modules_to_save=["mask_decoder"]))
            tiny_sam.train()
            tiny_sam.prompt_encoder = nn.Identity()
            tiny_sam.register_buffer("mine", torch.zeros(1))
            raise KeyError("mask_decoder.x")

    with pytest.raises(KeyError, match=r"mask_decoder\.x"):
        fail()
    assert looks(tiny_sam) == before
    assert torch.equal(masks(tiny_sam, tiny_inputs), given)


def test_what_did_not_fail_stays(tiny_sam):
    with unchanged_on_error(tiny_sam):
        tiny_sam.prompt_encoder = nn.Identity()
    assert isinstance(tiny_sam.prompt_encoder, nn.Identity)


def test_a_method_that_fails_half_way_leaves_the_model_as_it_was():
    @method("half", summary="fails after the first layer", trains_upstream=True)
    def half(model: nn.Module) -> nn.Module:
        model.vision_encoder.layers[0].attn.qkv = nn.Identity()
        raise RuntimeError("no second layer")

    model = make_tiny_sam()
    before = looks(model)
    try:
        with pytest.raises(RuntimeError, match="no second layer"):
            build("half", model)
    finally:
        del METHODS["half"]
    assert looks(model) == before
