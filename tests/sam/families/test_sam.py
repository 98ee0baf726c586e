"""The family of SamModel: what its methods give equals what the model itself does."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.sam import FAMILIES, Padded, family_of, neck_targets
from samparser.sam.families import Family, IncompleteCheckpointError, Sam
from samparser.tuner import SVDCoefficientConfig

BOXES = {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0]]] * 2)}


@pytest.fixture
def pixels(generator):
    return torch.randn(2, 3, 64, 64, generator=generator)


def with_coefficients(model):
    return get_peft_model(model, SVDCoefficientConfig(target_modules=neck_targets(model)))


def test_a_model_and_its_wrappers_are_of_the_family(tiny_sam):
    assert isinstance(family_of(tiny_sam), Sam)
    assert family_of(tiny_sam) is FAMILIES["sam"] is family_of(with_coefficients(tiny_sam))


def test_other_models_are_refused_with_the_families_that_there_are():
    with pytest.raises(TypeError, match=r"^Prediction needs a .*SamModel.*, or a PeftModel .*; got a Linear\.$"):
        family_of(torch.nn.Linear(2, 2), "Prediction")

    class Sam3Model(torch.nn.Module):
        config = type("Config", (), {"model_type": "sam3"})

    with pytest.raises(TypeError, match=r"got a Sam3Model\. Its boxes are exemplars .*The tuner itself works on it"):
        family_of(Sam3Model())


def test_the_frame_follows_the_config(tiny_sam):
    family = family_of(tiny_sam)
    assert family.frame(tiny_sam) == family.frame(tiny_sam.config) == Padded(64)


def test_the_usual_processor_makes_the_models_input(tiny_sam):
    processor = family_of(tiny_sam).processor(None, tiny_sam)
    images = processor.image_processor
    assert (images.size["longest_edge"], images.pad_size["height"], images.mask_size["longest_edge"]) == (64, 64, 32)


def test_a_saved_processor_is_read_back(tiny_sam, tiny_sam_folder, tiny_processor):
    processor = family_of(tiny_sam).processor(tiny_sam_folder, tiny_sam)
    assert processor.image_processor.mask_size == tiny_processor.image_processor.mask_size


def test_a_checkpoint_is_loaded_whole_or_refused(tiny_sam, tiny_sam_folder, tmp_path):
    family = Sam()
    loaded = family.load_model(tiny_sam_folder, tiny_sam.config)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in tiny_sam.state_dict().items())
    state = tiny_sam.state_dict()
    del state["vision_encoder.neck.conv2.weight"]
    tiny_sam.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(IncompleteCheckpointError, match=r"1 tensors of SamModel are not in it, first .*neck\.conv2"):
        family.load_model(tmp_path, tiny_sam.config)


@pytest.mark.parametrize("wrap", [lambda model: model.requires_grad_(False), with_coefficients])
@pytest.mark.parametrize("multimask", [False, True])
def test_encode_embed_and_decode_are_the_forward_in_three_steps(tiny_sam, pixels, wrap, multimask):
    model = wrap(tiny_sam).train()
    family = family_of(model)
    features = family.encode(model, pixels)
    assert model.training
    logits, scores = family.decode(model, family.embed(model, features), BOXES, multimask)
    expected = model(pixel_values=pixels, multimask_output=multimask, **BOXES)
    assert torch.equal(logits, expected.pred_masks)
    assert torch.equal(scores, expected.iou_scores)
    assert logits.shape == (2, 2, 3 if multimask else 1, 32, 32)


def test_the_gradients_from_features_are_those_from_pixels(tiny_sam, pixels):
    model = with_coefficients(tiny_sam).train()
    family, trained = family_of(model), [p for p in model.parameters() if p.requires_grad]
    model(pixel_values=pixels, multimask_output=False, **BOXES).pred_masks.square().mean().backward()
    expected = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    logits, _ = family.decode(model, family.embed(model, family.encode(model, pixels)), BOXES)
    logits.square().mean().backward()
    assert len(trained) == 2
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(trained, expected, strict=True))


def test_features_have_the_shapes_that_the_config_tells_and_no_gradient(tiny_sam, pixels):
    family = family_of(tiny_sam)
    features = family.encode(tiny_sam, pixels)
    assert [tuple(tensor.shape[1:]) for tensor in features] == family.feature_shapes(tiny_sam.config) == [(8, 8, 24)]
    assert not any(tensor.requires_grad for tensor in features)


def test_what_is_upstream_decides_the_features_and_nothing_else_does(tiny_sam, pixels):
    family = family_of(tiny_sam)
    upstream = family.upstream(tiny_sam)
    assert list(upstream) == [f"vision_encoder.{part}" for part in ("patch_embed", "pos_embed", "layers")]
    kept = [name for name, _ in tiny_sam.named_parameters() if not name.startswith(tuple(upstream))]
    assert kept
    assert all(re.match(r"vision_encoder\.neck|mask_decoder|prompt_encoder|shared_image", n) for n in kept)
    before = family.encode(tiny_sam, pixels)
    with torch.no_grad():
        for name in kept:
            tiny_sam.get_parameter(name).add_(1)
        assert torch.equal(family.encode(tiny_sam, pixels)[0], before[0])
        tiny_sam.get_parameter("vision_encoder.pos_embed").add_(1)
    assert not torch.equal(family.encode(tiny_sam, pixels)[0], before[0])


def test_the_rows_of_attention_are_its_queries_keys_and_values(tiny_sam):
    sites = family_of(tiny_sam).attention_layers(tiny_sam)
    assert [site.name for site in sites] == ["vision_encoder.layers.0.attn", "vision_encoder.layers.1.attn"]
    assert [site.layer_name for site in sites] == ["vision_encoder.layers.0", "vision_encoder.layers.1"]
    for site in sites:
        assert tiny_sam.get_submodule(site.name) is site.module
        rows = [site.query, site.key, site.value]
        assert all(tiny_sam.get_submodule(part.name) is part.linear for part in [*rows, site.out])
        assert [part.rows for part in rows] == [slice(0, 24), slice(24, 48), slice(48, 72)]
        # The heads' queries as the module makes them.
        tokens = torch.randn(1, 8, 8, 24)
        fused = site.module.qkv(tokens).reshape(1, 64, 3, 2, 12).permute(2, 0, 3, 1, 4)
        for part, expected in zip(rows, fused, strict=True):
            mine = part.linear(tokens)[..., part.rows].reshape(1, 64, 2, 12).transpose(1, 2)
            assert torch.equal(mine, expected)


def test_names_are_those_of_the_plain_model_also_under_adapters(tiny_sam):
    names = [site.query.name for site in family_of(tiny_sam).attention_layers(tiny_sam)]
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["qkv"], r=2))
    sites = family_of(model).attention_layers(model)
    assert [site.query.name for site in sites] == names
    assert hasattr(sites[0].query.linear, "lora_A")


def test_one_mask_is_one_mask_in_either_mode(tiny_sam):
    with family_of(tiny_sam).single_mask(tiny_sam):
        pass


def test_a_family_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Family()
