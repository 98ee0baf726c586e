"""Masks from a grid of points, against transformers' pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pycocotools.mask import decode, frPyObjects
from transformers import MaskGenerationPipeline
from transformers.utils import is_torchvision_available

from samparser.prediction import generate_masks, mask_generation
from samparser.sam import default_processor, family_of, frame_of, load_sam, neck_targets
from tests.conftest import make_tiny_sam
from tests.sam.tiny import TINY, make_tiny

from .test_grid_points import misplaced

LENIENT = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_masks_have_original_size_and_come_best_first(tiny_sam, tiny_processor, image):
    found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=4, batch=5, nms_thresh=1.0, **LENIENT)
    assert found.masks.dtype == np.bool_
    assert found.masks.shape == (len(found.scores), 40, 60)
    assert len(found.masks) == 3 * 16
    assert (np.diff(found.scores) <= 0).all()
    assert 0.01 < found.masks.mean() < 0.99


# A third of a side is no number of float32, in which prompts are; transformers' processor for Pillow keeps float64.
@pytest.mark.parametrize(("side", "rounding"), [(4, 0), (3, 1e-6)])
def test_masks_are_those_of_transformers_own_pipeline_before_its_last_step(
    tiny_sam, tiny_processor, image, side, rounding
):
    """A merged model is a plain SamModel: what runs here is what its users run."""
    from PIL import Image

    merged = get_peft_model(tiny_sam, LoraConfig(target_modules=neck_targets(tiny_sam), init_lora_weights=False))
    merged = merged.merge_and_unload()
    pipeline = MaskGenerationPipeline(model=merged, image_processor=tiny_processor.image_processor)
    steps = pipeline.preprocess(Image.fromarray(image), points_per_crop=side, points_per_batch=4)
    parts = [pipeline.forward(part, **LENIENT) for part in steps]
    scores = torch.cat([part["iou_scores"] for part in parts])
    found = generate_masks(merged, tiny_processor, image, points_per_side=side, batch=4, nms_thresh=1.0, **LENIENT)
    order = scores.argsort(descending=True, stable=True)
    assert len(found.scores) == 3 * side**2
    assert np.abs(found.scores - scores[order].numpy()).max() <= rounding
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


@pytest.mark.parametrize("model_type", TINY)
def test_every_family_gives_three_masks_for_each_point(model_type, image):
    """The reference is the plain model with all points at once, its logits brought to the image as its frame says."""
    model = make_tiny(model_type)
    processor = default_processor(model)
    frame, size = frame_of(processor), image.shape[:2]
    pixels = processor.image_processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    points = np.array([[x, y] for y in (10, 30) for x in (15, 45)])
    prompts = {"input_points": torch.from_numpy(frame.to_input(points, size))[None, :, None]}
    prompts["input_labels"] = torch.ones(1, 4, 1, dtype=torch.long)
    with torch.no_grad(), family_of(model).single_mask(model):
        output = model(pixel_values=pixels, multimask_output=True, **prompts)
    scores = output.iou_scores.flatten()
    masks = frame.to_original(output.pred_masks[0].flatten(0, 1), size) > 0
    found = generate_masks(model, processor, image, points_per_side=2, batch=3, nms_thresh=1.0, **LENIENT)
    order = scores.argsort(descending=True, stable=True)
    assert found.masks.shape == (12, *size)
    assert np.allclose(found.scores, scores[order].numpy(), atol=1e-6)
    assert (found.masks != masks[order].numpy()).mean() < 1e-3


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
    if misplaced(tiny_processor.image_processor):
        pytest.skip("this transformers puts the points of crops by the sides of the whole image")
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


class Thresholder:
    """A predictor that finds what is bright in the image that it is shown, twice and a little less sure each time."""

    shown: list

    def __init__(self, model, processor):
        self.resizer = self

    def set_image(self, image):
        self.shown.append(image.shape[:2])
        self.logits = torch.from_numpy(image[..., 0]).float() - 100

    def candidates(self, points, *, batch):
        for start in range(0, len(points), batch):
            part = points[start : start + batch]
            assert (part > 0).all()
            assert (part < self.logits.shape[::-1]).all()
            yield self.logits.expand(2 * len(part), -1, -1), torch.tensor([0.9, 0.8]).repeat(len(part))

    def to_input(self, logits):
        return logits

    def pieces(self, plane, above=None):
        yield 0, 0, plane


def test_masks_of_crops_lie_where_they_are_in_the_image(monkeypatch):
    """One of the four crops holds the bright spot, far from its edges; another sees it cut off, two have nothing."""
    monkeypatch.setattr(mask_generation, "SamPredictor", Thresholder)
    monkeypatch.setattr(Thresholder, "shown", [], raising=False)
    picture = np.zeros((200, 300, 3), dtype=np.uint8)
    picture[130:150, 210:260] = 255
    options = {"points_per_side": 2, "nms_thresh": 1.0, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
    alone = generate_masks(None, None, picture, **options)
    assert alone.masks.shape == (8, 200, 300)
    found = generate_masks(None, None, picture, batch=3, crops=1, **options)
    assert found.masks.shape == (16, 200, 300)
    assert (found.masks == (picture[..., 0] > 0)).all()
    assert found.scores.tolist() == pytest.approx(8 * [0.9] + 8 * [0.8])
    assert len(generate_masks(None, None, picture, points_per_side=2, crops=1).masks) == 1
    assert Thresholder.shown[1:6] == [(200, 300), (134, 184), (134, 184), (134, 184), (134, 184)]


def test_when_nothing_passes_the_thresholds_there_is_no_mask(tiny_sam, tiny_processor, image):
    found = generate_masks(tiny_sam, tiny_processor, image, points_per_side=2, pred_iou_thresh=1e9)
    assert found.masks.shape == (0, 40, 60)
    assert found.scores.shape == (0,)


def test_wrong_arguments_are_refused(tiny_sam, tiny_processor, image):
    with pytest.raises(TypeError, match=r"needs a SamModel.*got a Linear"):
        generate_masks(torch.nn.Linear(1, 1), tiny_processor, image)
    with pytest.raises(ValueError, match=r"must be 1 or more; got 0 and 16"):
        generate_masks(tiny_sam, tiny_processor, image, points_per_side=0)
    with pytest.raises(ValueError, match=r"crops must be 0 or more layers; got -1"):
        generate_masks(tiny_sam, tiny_processor, image, crops=-1)
    with pytest.raises(ValueError, match=r"got float64"):
        generate_masks(tiny_sam, tiny_processor, image / 255)
