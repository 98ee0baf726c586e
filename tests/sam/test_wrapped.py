"""What is inside a wrapper, and what tuning changes of the image encoder."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.sam import changes_before_neck, image_processor, plain_model
from samparser.sam.wrapped import changes_in_neck, input_size, plain_sam


def test_the_model_and_the_image_processor_are_found_inside_their_wrappers(tiny_sam, tiny_processor):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["conv1"], r=2))
    assert plain_model(model) is plain_model(tiny_sam) is tiny_sam
    assert plain_sam(model, "A test") is tiny_sam
    images = image_processor(tiny_processor)
    assert image_processor(images) is images is tiny_processor.image_processor
    assert input_size(tiny_processor) == input_size(images) == 64
    with pytest.raises(TypeError, match=r"A test needs a SamModel, or a PeftModel around one; got a Linear\."):
        plain_sam(torch.nn.Linear(1, 1), "A test")


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
