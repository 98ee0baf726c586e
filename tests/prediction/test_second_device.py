"""Prediction with a model on another device than the CPU, and how often it waits for that device."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prediction import SamPredictor, generate_masks, predict
from samparser.sam import default_processor, neck_targets
from tests.sam.tiny import TINY, make_tiny
from tests.second_device import SecondDeviceTensor, watching

BOXES = [[4, 5, 20, 40], [25, 8, 40, 40], [1, 1, 30, 30]]
POINTS = [[12, 24], [32, 24]]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (48, 56, 3), dtype=np.uint8)


def adapted(model_type="sam"):
    """A small model with two adapters of the neck that differ."""
    model = make_tiny(model_type)
    torch.manual_seed(0)
    config = SVDCoefficientConfig(target_modules=neck_targets(model), init_weights=False)
    model = get_peft_model(model, config, "a")
    model.add_adapter("b", config)
    return model.eval(), default_processor(model.get_base_model())


def answers(model, processor, image):
    """All that can be asked for with prompts."""
    predictor = SamPredictor(model, processor)
    predictor.set_image(image)
    found = {
        "boxes": predictor.predict(boxes=BOXES),
        "points": predictor.predict(points=POINTS, batch=1),
        "logits": predictor.predict_logits(boxes=BOXES),
        **predict(model, processor, image, boxes=BOXES[:1], adapters=["a", "b", None]),
    }
    return {name: np.asarray(value) for name, value in found.items()}


def is_stand_in(model):
    return isinstance(next(model.parameters()), SecondDeviceTensor)


@pytest.mark.parametrize("model_type", TINY)
def test_every_answer_is_that_of_the_cpu(gpu, image, model_type):
    model, processor = adapted(model_type)
    here = answers(model, processor, image)
    there = answers(model.to(gpu), processor, image)
    assert here.keys() == there.keys()
    for name, value in here.items():
        if is_stand_in(model):
            assert np.array_equal(there[name], value), name
        else:
            assert ((there[name] > 0) != (value > 0)).mean() < 0.001, name


GRID = {"points_per_side": 2, "batch": 3, "pred_iou_thresh": 0, "stability_score_thresh": 0, "nms_thresh": 1.0}


def test_masks_of_everything_are_those_of_the_cpu(gpu, image):
    model, processor = adapted()
    here = generate_masks(model, processor, image, **GRID)
    there = generate_masks(model.to(gpu), processor, image, **GRID)
    assert len(here.masks) == 12
    if is_stand_in(model):
        assert np.array_equal(there.masks, here.masks)
        assert np.array_equal(there.scores, here.scores)


def test_the_waits_of_a_prediction_are_few_and_known(gpu, image):
    model, processor = adapted()
    predictor = SamPredictor(model.to(gpu), processor)
    if not is_stand_in(model):
        pytest.skip("A GPU is not watched.")
    predictor.set_image(image)
    predictor.predict(boxes=BOXES)
    with watching() as seen:
        predictor.set_image(image)
        predictor.predict(boxes=BOXES)
    assert seen.waits == {
        # Which part of the image a mask is in, and then that part: for each of three boxes.
        ("prediction/resize.py:pieces", "to cpu"): 3,
        ("prediction/resize.py:mask", "to cpu"): 3,
        # Whether somebody wrote other values to the memory of a weight or of coefficients, of which no counter of torch
        # tells: for each of two adapted layers.
        ("tuner/bases.py:is_of", "item"): 2,
        ("tuner/weight_cache.py:fits", "equal"): 2,
    }
    with watching() as seen:
        predictor.predict(boxes=BOXES[:1])
    assert seen.waits.total() == 2, "the image is encoded once"
    assert seen.sent.total() == 1, "the boxes"


def test_the_waits_of_masks_of_everything_are_three_a_mask_and_two_a_batch(gpu, image):
    model, processor = adapted()
    if not is_stand_in(model.to(gpu)):
        pytest.skip("A GPU is not watched.")
    with watching() as seen:
        generate_masks(model, processor, image, **GRID)
    waits = {what: count for what, count in seen.waits.items() if what[0].startswith("prediction")}
    masks, batches = 3 * 2 * 2, 2
    assert waits == {
        ("prediction/predictor.py:candidates", "to cpu"): batches,
        ("prediction/mask_filters.py:judgements", "to cpu"): batches,
        ("prediction/resize.py:pieces", "to cpu"): masks,
        ("prediction/mask_filters.py:stability_and_mask", "to cpu"): 2 * masks,
    }
