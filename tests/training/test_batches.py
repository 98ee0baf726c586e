"""Steps of several images from features, in every family: the loss and its gradient are the mean of single images'."""

from contextlib import ExitStack, contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig
from samparser.features.from_features import taking_features
from samparser.prompts import collate
from samparser.sam import family_of, lean_decoder, neck_targets
from samparser.sam.changes import frozen_before_neck
from samparser.training import TrainSettings
from samparser.training.trainer import batch_loss, mask_logits
from tests.sam.tiny import TINY, make_tiny

every_family = pytest.mark.parametrize("model_type", TINY)
SETTINGS = TrainSettings()
KINDS = ("boxes", "points")


def tuned(model_type, dtype=torch.float64):
    """Coefficients of the neck, and the mask decoder, in training mode."""
    model = make_tiny(model_type)
    config = SVDCoefficientConfig(target_modules=neck_targets(model), modules_to_save=["mask_decoder"])
    model = get_peft_model(model, config).to(dtype)
    with torch.no_grad():  # coefficients that are not where they start
        for name, parameter in model.named_parameters():
            if "svd_coefficient" in name:
                parameter.mul_(1.1)
    model.train()
    for part in frozen_before_neck(model):  # as the trainer does
        part.eval()
    return model


@cache
def double(model_type):
    """One model in double precision for all examples of a family."""
    return tuned(model_type)


@contextmanager
def fed(model, dtype=torch.float64, lean=True):
    """The model takes features, as inside the cache's `feeding`."""
    family = family_of(model)
    shapes = family.feature_shapes(model.get_base_model().config)
    with ExitStack() as stack:
        stack.enter_context(taking_features(model, family, shapes, dtype, after_neck=False))
        if lean:
            stack.enter_context(lean_decoder(model))
        yield


def items_of(model, counts, kind="boxes", seed=0, dtype=torch.float64):
    """Items as of a `PromptedDataset` on a cache's processor, with so many prompts each."""
    config = model.get_base_model().config
    family, generator = family_of(model), torch.Generator().manual_seed(seed)
    side = family.frame(config).size

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    items = []
    for index, count in enumerate(counts):
        corner = random(count, 2) * side / 2
        valid = torch.ones(side, side, dtype=torch.bool)
        valid[side - 5 * (index + 1) :] = False
        prompts = {"input_boxes": torch.cat([corner, corner + 2 + random(count, 2) * side / 3], dim=1)}
        if kind == "points":
            labels = torch.ones(count, 3, dtype=torch.int64)
            prompts = {"input_points": random(count, 3, 2) * side, "input_labels": labels}
        items.append(
            {
                "pixel_values": tuple((random(*shape) - 0.5).to(dtype) for shape in family.feature_shapes(config)),
                "masks": random(count, side, side) > 0.6,
                "pixel_valid": valid,
                "name": str(index),
                **prompts,
            }
        )
    return items


def loss_and_gradients(model, items):
    model.zero_grad()
    batch = collate(items)
    terms = batch_loss(mask_logits(model, batch), batch, SETTINGS)
    terms.total.backward()
    return terms.total.detach(), gradients(model)


def gradients(model):
    """Of every trained tensor; zeros where none came, as of the heads that no single mask is of."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained}


def mean_of_singles(model, items):
    losses, each = zip(*(loss_and_gradients(model, [item]) for item in items), strict=True)
    return sum(losses) / len(items), {name: sum(own[name] for own in each) / len(items) for name in each[0]}


def assert_same(got, expected, rtol):
    torch.testing.assert_close(got[0], expected[0], rtol=rtol, atol=0)
    assert got[1].keys() == expected[1].keys()
    largest = {name: float(gradient.abs().max()) for name, gradient in expected[1].items()}
    floor = 1e-3 * max(largest.values())  # some are zero but for rounding, such as those of the biases of keys
    for name, gradient in expected[1].items():
        atol = rtol * max(floor, largest[name])
        torch.testing.assert_close(got[1][name], gradient, rtol=0, atol=atol, msg=lambda text, name=name: name + text)


@every_family
@settings(max_examples=6)
@given(counts=st.lists(st.integers(0, 4), min_size=2, max_size=4), kind=st.sampled_from(KINDS), lean=st.booleans())
def test_a_batch_is_the_mean_of_its_images_however_many_prompts_each_has(model_type, counts, kind, lean):
    model = double(model_type)
    items = items_of(model, counts, kind)
    with fed(model, lean=lean):
        assert_same(loss_and_gradients(model, items), mean_of_singles(model, items), rtol=1e-6)


@every_family
def test_in_float32_it_is_so_up_to_rounding(model_type):
    model = tuned(model_type, torch.float32)
    items = items_of(model, [1, 4, 2], dtype=torch.float32)
    with fed(model, torch.float32):
        assert_same(loss_and_gradients(model, items), mean_of_singles(model, items), rtol=2e-4)


@contextmanager
def seen(module):
    """The shapes that come into a module."""
    shapes = []
    handle = module.register_forward_pre_hook(
        lambda _, arguments, keywords: shapes.append(
            [tuple(v.shape) for v in (*arguments, *keywords.values()) if isinstance(v, torch.Tensor)]
        ),
        with_kwargs=True,
    )
    yield shapes
    handle.remove()


@every_family
def test_prompts_of_all_images_are_decoded_in_one_pass_and_what_fills_the_batch_up_is_not(model_type):
    model = double(model_type)
    plain = model.get_base_model()
    with fed(model), seen(plain.mask_decoder) as decoded, seen(plain.vision_encoder.neck) as necks:
        logits = mask_logits(model, collate(items_of(model, [1, 4, 0, 2])))
    assert len(decoded) == len(necks) == 1
    channels = decoded[0][0][1]
    assert decoded[0][0][:2] == (7, channels)
    assert logits.shape[:2] == (4, 4)
    for row, count in zip(logits, (1, 4, 0, 2), strict=True):
        assert row[:count].flatten(1).any(1).all()
        assert not row[count:].any()


@every_family
def test_little_filling_is_decoded_where_images_share_half_of_the_work(model_type):
    model = double(model_type)
    decoder = model.get_base_model().mask_decoder
    with fed(model), seen(decoder) as decoded:
        logits = mask_logits(model, collate(items_of(model, [2, 3])))
    assert decoded[0][0][0] == (2 if model_type == "sam_hq" else 5)
    assert logits.shape[:2] == (2, 3)


def test_copies_on_several_devices_get_rows_of_one_length():
    model = double("sam")
    with fed(model), seen(model.get_base_model().mask_decoder) as decoded:
        mask_logits(nn.DataParallel(model), collate(items_of(model, [1, 3])))
    assert decoded[0][0][0] == 2
