"""What holds for every family, on a small random model of each."""

import json

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel, get_peft_model
from torch import nn

from samparser.sam import FAMILIES, Padded, Squashed, count_coefficients, default_processor, family_of, neck_targets
from samparser.sam.modes import evaluating
from samparser.tuner import SVDCoefficientConfig
from tests.sam.tiny import TINY, make_tiny

PROMPTS = {
    "boxes": {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0]]] * 2)},
    "points": {
        "input_points": torch.tensor([[[[20.0, 30.0], [5.0, 5.0]], [[12.0, 14.0], [50.0, 2.0]]]] * 2),
        "input_labels": torch.tensor([[[1, 0], [1, -10]]] * 2),
    },
}
PROMPTS["both"] = PROMPTS["boxes"] | PROMPTS["points"]
every_family = pytest.mark.parametrize("model_type", TINY)


def pixels_for(model, seed=0):
    size = family_of(model).frame(model).size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tuned(model, decoder=True, dtype=torch.float32):
    config = SVDCoefficientConfig(
        target_modules=neck_targets(model), modules_to_save=["mask_decoder"] if decoder else None
    )
    return get_peft_model(model.to(dtype), config)


def training_with_frozen_prefix(model):
    """Train mode but for the parts before the neck, as a trainer has them."""
    model.train()
    for part in family_of(model).upstream(model).values():
        if isinstance(part, nn.Module):
            part.eval()
    return model


def masks(model, pixels, prompts="boxes"):
    """What the plain model gives in eval mode with single masks from the head that is trained."""
    with family_of(model).single_mask(model), evaluating(model):
        return model(pixel_values=pixels, multimask_output=False, **PROMPTS[prompts]).pred_masks


def train(model, pixels, steps=2):
    training_with_frozen_prefix(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    target = torch.rand(2, 2, 1, 1, 1) > 0.5
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(pixel_values=pixels, multimask_output=False, **PROMPTS["boxes"]).pred_masks
        nn.functional.binary_cross_entropy_with_logits(logits, target.float().expand_as(logits)).backward()
        optimizer.step()
    return model.eval()


def kept(features):
    """Features as a file gives them back: whole, without the strides that they had."""
    return tuple(tensor.contiguous().clone() for tensor in features)


def test_there_is_a_small_model_of_every_family():
    here = Version(transformers.__version__)
    loaded = {family for family in FAMILIES.values() if Version(family.needs_transformers) <= here}
    assert {FAMILIES[model_type] for model_type in TINY} == loaded
    assert [make_tiny(model_type).config.model_type for model_type in TINY] == list(TINY)


@every_family
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("multimask", [False, True])
def test_masks_from_features_equal_those_from_pixels_bit_for_bit(model_type, prompts, multimask):
    # Frozen: with gradients torch may take other kernels in the encoder, from pixels.
    model = make_tiny(model_type).requires_grad_(False)
    family, pixels = family_of(model), pixels_for(model)
    features = kept(family.encode(model, pixels))
    assert [tuple(tensor.shape[1:]) for tensor in features] == family.feature_shapes(model.config)
    for mode in (model.eval, lambda: training_with_frozen_prefix(model)):
        mode()
        logits, scores = family.decode(model, family.embed(model, features), PROMPTS[prompts], multimask)
        expected = model(pixel_values=pixels, multimask_output=multimask, **PROMPTS[prompts])
        assert torch.equal(logits, expected.pred_masks)
        assert torch.equal(scores, expected.iou_scores)
        assert logits.shape[:3] == (2, 2, 3 if multimask else 1)
    assert logits.std() > 0.05


@every_family
@pytest.mark.parametrize("decoder", [False, True])
def test_gradients_from_features_equal_those_from_pixels_bit_for_bit(model_type, decoder):
    model = tuned(make_tiny(model_type), decoder)
    family, pixels = family_of(model), pixels_for(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    training_with_frozen_prefix(model)
    output = model(pixel_values=pixels, multimask_output=False, **PROMPTS["boxes"])
    (output.pred_masks.square().mean() + output.iou_scores.sum()).backward()
    expected = {name: p.grad for name, p in trained.items()}
    model.zero_grad()
    features = kept(family.encode(model, pixels))
    logits, scores = family.decode(model, family.embed(model, features), PROMPTS["boxes"])
    (logits.square().mean() + scores.sum()).backward()
    for name, parameter in trained.items():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            assert torch.equal(parameter.grad, expected[name]), name
    # The object score is no mask. Everything else is trained, though heads of other masks get zeros.
    without = {name for name in trained if expected[name] is None}
    unused = {"no_memory_embedding"} if model_type == "sam3_tracker" else set()
    assert all("pred_obj_score_head" in name or name in unused for name in without)
    zero = {name for name in trained if expected[name] is not None and not expected[name].any()}
    assert all("output_hypernetworks_mlps" in name for name in zero)


@every_family
def test_a_fresh_adapter_is_the_base_bit_for_bit(model_type):
    model = make_tiny(model_type)
    pixels = pixels_for(model)
    expected = {prompts: masks(model, pixels, prompts) for prompts in PROMPTS}
    model = tuned(model)
    assert all(torch.equal(masks(model, pixels, prompts), expected[prompts]) for prompts in PROMPTS)


@every_family
def test_train_save_reload_and_merge_agree(model_type, tmp_path):
    model = make_tiny(model_type)
    pixels = pixels_for(model)
    base = masks(model, pixels)
    model = train(tuned(model), pixels)
    expected = masks(model, pixels)
    assert (expected - base).abs().max() > 1e-2
    with model.disable_adapter():
        assert torch.equal(masks(model, pixels), base)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make_tiny(model_type), tmp_path / "adapter")
    assert torch.equal(masks(again, pixels), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(masks(merged, pixels), expected, rtol=1e-4, atol=1e-5)

    family = family_of(merged)
    family.keep_single_mask(merged)
    merged.save_pretrained(tmp_path / "merged")
    plain = getattr(transformers, family.model_class).from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        output = plain(pixel_values=pixels, multimask_output=False, **PROMPTS["boxes"])
    assert torch.equal(output.pred_masks, masks(merged, pixels))
    assert family.load_model(tmp_path / "merged", plain.config).config.model_type == model_type


@every_family
def test_training_leaves_the_frozen_part_as_it_was(model_type):
    model = tuned(make_tiny(model_type))
    parts = {name: part for name, part in family_of(model).upstream(model).items() if isinstance(part, nn.Module)}
    before = {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}
    train(model, pixels_for(model))
    for name, part in parts.items():
        assert all(torch.equal(value, before[name][key]) for key, value in part.state_dict().items())


@every_family
def test_encoding_needs_no_mode_and_changes_nothing(model_type):
    model = make_tiny(model_type).train()
    family, pixels = family_of(model), pixels_for(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    features = family.encode(model, pixels)
    if not model_type.startswith("sam_") and model_type != "sam":
        assert all(tensor.is_contiguous() for tensor in features)
    assert all(module.training for module in model.modules())
    assert not any(tensor.requires_grad for tensor in features)
    again = family.encode(model.eval(), pixels)
    assert all(torch.equal(one, other) for one, other in zip(features, again, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@every_family
def test_what_is_upstream_decides_the_features_and_nothing_else_does(model_type):
    model = make_tiny(model_type)
    family, pixels = family_of(model), pixels_for(model)
    upstream = family.upstream(model)
    modules = dict(model.named_modules()) | dict(model.named_parameters())
    assert all(modules[name] is part for name, part in upstream.items())
    before = family.encode(model, pixels)
    outside = [p for name, p in model.named_parameters() if not name.startswith(tuple(upstream))]
    inside = [p for name, p in model.named_parameters() if name.startswith(tuple(upstream))]
    with torch.no_grad():
        for parameter in outside:
            parameter.add_(1)
        assert all(map(torch.equal, family.encode(model, pixels), before))
        inside[0].add_(1)
    assert not any(map(torch.equal, family.encode(model, pixels), before))


@every_family
def test_the_coefficients_of_the_neck_are_those_that_reach_a_mask(model_type):
    model = make_tiny(model_type)
    count = count_coefficients(model)
    model = tuned(model, decoder=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == count
    training_with_frozen_prefix(model)
    pixels = pixels_for(model)
    model(pixel_values=pixels, multimask_output=False, **PROMPTS["boxes"]).pred_masks.square().mean().backward()
    assert all((p.grad != 0).all() for p in trained)


@every_family
def test_the_frame_is_that_of_the_usual_processor(model_type):
    model = make_tiny(model_type)
    frame = family_of(model).frame(model)
    assert type(frame) is (Padded if model_type in ("sam", "sam_hq") else Squashed)
    processor = default_processor(model)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, frame.size, frame.size)
    height, width = frame.content((30, 50))
    assert not pixels[..., height:, :].any()
    assert not pixels[..., width:].any()
    # There and back: the corners of the image are the corners of its part of the input.
    corners = frame.to_input(np.array([[0, 0], [50, 30]]), (30, 50))
    np.testing.assert_allclose(corners, [[0, 0], [width, height]])
    logits = torch.zeros(1, 1, frame.size, frame.size)
    logits[..., : height // 2, : width // 2] = 1
    back = frame.to_original(logits, (30, 50))
    assert back.shape == (1, 1, 30, 50)
    assert back[0, 0, 2, 2] == 1
    assert back[0, 0, -3, -3] == 0
    assert abs(back.mean().item() - 0.25) < 0.03


@every_family
def test_a_processor_is_saved_and_read_back(model_type, tmp_path):
    model = make_tiny(model_type)
    family = family_of(model)
    processor = family.processor(None, model)
    processor.save_pretrained(tmp_path)
    again = family.processor(tmp_path, model)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    first, second = (p(image, return_tensors="pt")["pixel_values"] for p in (processor, again))
    assert torch.equal(first, second)
    file = next(path for path in tmp_path.iterdir() if path.name == "processor_config.json")
    assert json.loads(file.read_text())["processor_class"] == family.processor_class


@every_family
def test_the_rows_of_attention_are_queries_keys_and_values(model_type):
    model = make_tiny(model_type)
    sites = family_of(model).attention_layers(model)
    assert (not sites) == (model_type == "edgetam")
    modules = dict(model.named_modules())
    for site in sites:
        assert modules[site.name] is site.module
        assert site.layer_name in modules
        parts = [site.query, site.key, site.value]
        assert all(modules[part.name] is part.linear for part in [*parts, site.out])
        widths = {part.rows.stop - part.rows.start for part in parts}
        assert widths == {site.out.linear.in_features}
        fused = {part.name for part in parts}
        assert len(fused) in (1, 3)
        rows = sum(linear.out_features for linear in {part.linear for part in parts})
        assert rows == 3 * site.out.linear.in_features
