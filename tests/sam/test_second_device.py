"""Every family with a model on another device than the CPU: the encoder, the lean decoder, a step from features."""

import copy

import pytest
import torch

from samparser.features.from_features import taking_features
from samparser.sam import family_of
from samparser.sam.lean import lean_decoder
from tests.sam.tiny import TINY, make_tiny
from tests.second_device import assert_same, watching

BOXES = torch.tensor([[[4.0, 6.0, 40.0, 30.0], [10.0, 2.0, 20.0, 50.0]]])
POINTS = {"input_points": torch.tensor([[[[9.0, 9.0]]]]), "input_labels": torch.ones(1, 1, 1, dtype=torch.int64)}


def step(model, pixel_values, **prompts):
    """Masks, scores and the gradients of neck and decoder."""
    model.zero_grad()
    output = model(pixel_values=pixel_values, **prompts)
    (output.pred_masks.square().mean() + output.iou_scores.sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any("mask_decoder" in name for name in gradients)
    return {"masks": output.pred_masks, "scores": output.iou_scores, **gradients}


def moved(values, device):
    if isinstance(values, tuple):
        return tuple(moved(value, device) for value in values)
    return {key: value.to(device) for key, value in values.items()} if isinstance(values, dict) else values.to(device)


@pytest.fixture(params=TINY)
def trained(request):
    """A small model of a family with a frozen encoder, and an image."""
    model = make_tiny(request.param)
    for part in family_of(model).upstream(model).values():
        part.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "positional_embedding" in name:  # shared by two modules, which the stand-in's conversion makes two of
            parameter.requires_grad_(False)
    size = model.config.prompt_encoder_config.image_size
    return model, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lean", [False, True], ids=["plain", "lean"])
@pytest.mark.parametrize(
    ("prompts", "multimask_output"), [({"input_boxes": BOXES}, False), (POINTS, True)], ids=["boxes", "points, 3 masks"]
)
def test_masks_and_gradients_from_pixels(gpu, trained, prompts, multimask_output, lean):
    model, pixels = trained

    def run(model, device):
        return step(model, pixels.to(device), multimask_output=multimask_output, **moved(prompts, device))

    there_model = copy.deepcopy(model).to(gpu)
    if lean:
        with lean_decoder(model), lean_decoder(there_model):
            here, there = run(model, "cpu"), run(there_model, gpu)
    else:
        here, there = run(model, "cpu"), run(there_model, gpu)
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert_same(there[name], value)


def test_a_lean_step_from_features_without_a_wait_for_the_device(gpu, trained):
    model, pixels = trained
    family = family_of(model)
    features = family.encode(model, pixels)
    shapes = [tuple(tensor.shape[1:]) for tensor in features]

    def run(model, features, boxes):
        with taking_features(model, family, shapes, torch.float32, after_neck=False), lean_decoder(model):
            return step(model, features, input_boxes=boxes, multimask_output=False)

    here = run(copy.deepcopy(model), features, BOXES)
    model.to(gpu)
    for one, other in zip(family.encode(model, pixels.to(gpu)), features, strict=True):
        assert_same(one, other)
    features, boxes = moved(features, gpu), BOXES.to(gpu)
    with watching() as seen:
        there = run(model, features, boxes)
    assert not seen.waits
    for name, value in here.items():
        assert_same(there[name], value)
