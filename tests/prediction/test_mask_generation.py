"""Masks from a grid of points: transformers' pipeline with our removal of duplicates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pycocotools.mask import decode, frPyObjects
from transformers import MaskGenerationPipeline
from transformers.utils import is_torchvision_available

from samparser.prediction import generate_masks
from samparser.prediction.mask_generation import non_maximum_suppression
from samparser.sam import load_sam, neck_targets
from tests.conftest import make_tiny_sam

LENIENT = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def suppressed_by_a_double_loop(boxes, scores, threshold):
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        x0, y0, x1, y1 = boxes[index]
        for other in kept:
            u0, v0, u1, v1 = boxes[other]
            common = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - common
            if common > threshold * union:
                break
        else:
            kept.append(index)
    return kept


box = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)).map(
    lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3])
)


@settings(max_examples=60)
@given(st.lists(st.tuples(box, st.integers(0, 5)), min_size=1, max_size=20), st.sampled_from([0.3, 0.5, 0.7]))
def test_suppression_equals_a_double_loop(items, threshold):
    boxes, scores = [item[0] for item in items], [item[1] for item in items]
    kept = non_maximum_suppression(torch.tensor(boxes).float(), torch.tensor(scores).float(), threshold)
    assert kept.tolist() == suppressed_by_a_double_loop(boxes, scores, threshold)


def test_masks_have_original_size_and_come_best_first(tiny_sam, tiny_processor, image):
    found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4, batch=5, nms_thresh=1.0, **LENIENT)
    assert found.masks.dtype == np.bool_
    assert found.masks.shape == (len(found.scores), 40, 60)
    assert len(found.masks) == 3 * 16
    assert (np.diff(found.scores) <= 0).all()
    assert 0.01 < found.masks.mean() < 0.99


def test_masks_are_those_of_transformers_own_pipeline_before_its_last_step(tiny_sam, tiny_processor, image):
    """A merged model is a plain SamModel: what runs here is what its users run."""
    from PIL import Image

    merged = get_peft_model(tiny_sam, LoraConfig(target_modules=neck_targets(tiny_sam), init_lora_weights=False))
    merged = merged.merge_and_unload()
    pipeline = MaskGenerationPipeline(model=merged, image_processor=tiny_processor.image_processor)
    steps = pipeline.preprocess(Image.fromarray(image), points_per_crop=3, points_per_batch=4)
    parts = [pipeline.forward(part, **LENIENT) for part in steps]
    scores = torch.cat([part["iou_scores"] for part in parts])
    found = generate_masks(merged, tiny_processor, image, points_per_side=3, batch=4, nms_thresh=1.0, **LENIENT)
    order = scores.argsort(descending=True, stable=True)
    assert np.array_equal(found.scores, scores[order].numpy())
    encodings = [encoding for part in parts for encoding in part["masks"]]
    for index, mask in zip(order.tolist(), found.masks, strict=True):
        assert np.array_equal(mask, decode(frPyObjects(encodings[index], *image.shape[:2])).astype(bool))


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' own removal of duplicates needs torchvision")
def test_masks_equal_those_of_the_whole_pipeline(tiny_sam, tiny_processor, image):
    from PIL import Image

    pipeline = MaskGenerationPipeline(model=tiny_sam, image_processor=tiny_processor.image_processor)
    expected = pipeline(Image.fromarray(image), points_per_crop=4, **LENIENT)
    found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4, **LENIENT)
    assert np.array_equal(found.masks, np.stack(expected["masks"]))


def test_an_adapted_model_gives_the_masks_of_the_merged_one(tiny_processor, image):
    sam = make_tiny_sam()
    model = get_peft_model(sam, LoraConfig(target_modules=neck_targets(sam), init_lora_weights=False)).train()
    adapted = generate_masks(model, tiny_processor, image, points_per_side=3, **LENIENT)
    assert model.training
    merged = generate_masks(model.merge_and_unload(), tiny_processor, image, points_per_side=3, **LENIENT)
    assert adapted.masks.shape == merged.masks.shape
    assert (adapted.masks != merged.masks).mean() < 1e-3


def test_thresholds_that_are_not_given_follow_a_model_that_is_less_sure_of_itself(tiny_sam, tiny_processor, image):
    """Of the candidates of a random model none comes near SAM's own thresholds."""
    with pytest.warns(
        UserWarning, match=r"None of 48 candidates reached SAM's own thresholds .*0\.88.*pred_iou_thresh"
    ):
        found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4)
    every = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4, nms_thresh=1.0, **LENIENT)
    assert 1 <= len(found.masks) <= 3
    assert found.scores[0] >= np.quantile(every.scores, 0.95)
    with pytest.warns(UserWarning, match=r"stability_score_thresh 0\.00\."):
        some = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4, stability_score_thresh=0.0)
    assert len(some.masks) >= len(found.masks)


def test_the_shipped_model_finds_something_and_the_largest_masks_are_no_noise():
    model, processor = load_sam(Path(__file__).parents[2] / "examples" / "assets" / "small-sam")
    picture = np.full((96, 128, 3), 40, dtype=np.uint8)
    picture[20:60, 30:90] = [200, 120, 60]
    with pytest.warns(UserWarning, match="best of this model's own were taken"):
        found = generate_masks(model, processor, picture, points_per_side=6)
    truth = np.zeros((96, 128), dtype=bool)
    truth[20:60, 30:90] = True
    overlap = [(mask & truth).sum() / (mask | truth).sum() for mask in found.masks]
    assert max(overlap) > 0.8


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (40, 1)])
@pytest.mark.parametrize("points", [1, 2])
def test_the_smallest_images_have_masks_too(tiny_sam, tiny_processor, size, points):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = generate_masks(tiny_sam, tiny_processor, picture, points_per_side=points, **LENIENT)
    assert found.masks.shape == (len(found.scores), *size)
    assert len(found.masks) > 0


def test_grids_of_crops_are_put_where_the_crops_are(tiny_sam, tiny_processor, image):
    """The reference is transformers' own pipeline before its last step."""
    pipeline = MaskGenerationPipeline(model=tiny_sam, image_processor=tiny_processor.image_processor)
    from PIL import Image

    steps = pipeline.preprocess(Image.fromarray(image), points_per_crop=2, points_per_batch=4, crops_n_layers=1)
    parts = [pipeline.forward(part, **LENIENT) for part in steps]
    scores = torch.cat([part["iou_scores"] for part in parts])
    encodings = [encoding for part in parts for encoding in part["masks"]]
    options = {"points_per_side": 2, "batch": 4, "nms_thresh": 1.0, "crops": 1, **LENIENT}
    found = generate_masks(tiny_sam, tiny_processor, image, **options)
    order = scores.argsort(descending=True, stable=True)
    assert np.allclose(found.scores, scores[order].numpy())
    assert len(found.masks) == len(encodings)
    for index, mask in zip(order.tolist(), found.masks, strict=True):
        assert np.array_equal(mask, decode(frPyObjects(encodings[index], *image.shape[:2])).astype(bool))


def test_when_nothing_passes_the_thresholds_there_is_no_mask(tiny_sam, tiny_processor, image):
    found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=2, pred_iou_thresh=1e9)
    assert found.masks.shape == (0, 40, 60)
    assert found.scores.shape == (0,)


def test_wrong_arguments_are_refused(tiny_sam, tiny_processor, image):
    with pytest.raises(TypeError, match=r"needs a SamModel.*got a Linear"):
        generate_masks(torch.nn.Linear(1, 1), tiny_processor, image)
    with pytest.raises(ValueError, match=r"must be 1 or more; got 0 and 16"):
        generate_masks(tiny_sam, tiny_processor, image, points_per_side=0)
    with pytest.raises(ValueError, match=r"got float64"):
        generate_masks(tiny_sam, tiny_processor, image / 255)
