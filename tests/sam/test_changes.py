"""What tuning changes of the image encoder, and whether a model is tuned."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.sam import changes_before_neck, is_tuned, mark_tuned
from samparser.sam.changes import changes_in_neck, frozen_before_neck


def test_adapters_and_trained_parameters_are_named_on_their_side_of_the_neck(tiny_sam):
    tiny_sam.requires_grad_(False)
    assert not changes_before_neck(tiny_sam)
    assert not changes_in_neck(tiny_sam)
    tiny_sam.vision_encoder.neck.conv1.weight.requires_grad_(True)
    assert not changes_before_neck(tiny_sam)
    assert changes_in_neck(tiny_sam).trained == ("vision_encoder.neck.conv1.weight",)
    tiny_sam.vision_encoder.pos_embed.requires_grad_(True)
    assert changes_before_neck(tiny_sam).trained == ("vision_encoder.pos_embed",)


def test_an_adapter_counts_where_it_sits_also_while_nothing_trains(tiny_sam):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["qkv", "conv2"], modules_to_save=["patch_embed"], r=2))
    model.requires_grad_(False)
    before, inside = changes_before_neck(model), changes_in_neck(model)
    assert before.trained == inside.trained == ()
    layers = [f"vision_encoder.layers.{number}.attn.qkv" for number in range(2)]
    assert before.adapted == ("vision_encoder.patch_embed", *layers)
    assert inside.adapted == ("vision_encoder.neck.conv2",)
    assert before
    assert inside


def test_what_is_frozen_before_the_neck_is_nothing_once_something_of_it_is_tuned(tiny_sam):
    tiny_sam.requires_grad_(False)
    encoder = tiny_sam.vision_encoder
    assert frozen_before_neck(tiny_sam) == [encoder.patch_embed, encoder.layers]
    encoder.neck.requires_grad_(True)
    assert len(frozen_before_neck(tiny_sam)) == 2
    encoder.layers[1].mlp.lin1.bias.requires_grad_(True)
    assert frozen_before_neck(tiny_sam) == []


def test_a_model_is_tuned_while_an_adapter_is_switched_on(tiny_sam):
    assert not is_tuned(tiny_sam)
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["conv2"], modules_to_save=["mask_decoder"], r=2))
    assert is_tuned(model)
    with model.disable_adapter():
        assert not is_tuned(model)
    assert is_tuned(model)


def test_a_plain_model_is_tuned_where_somebody_says_so(tiny_sam):
    mark_tuned(tiny_sam)
    assert is_tuned(tiny_sam)
    mark_tuned(tiny_sam, False)
    assert not is_tuned(tiny_sam)


def test_a_model_of_no_family_is_refused():
    with pytest.raises(TypeError, match="got a Linear"):
        changes_before_neck(torch.nn.Linear(1, 1))
