"""The verbs on a small saved checkpoint of every family."""

import json

import numpy as np
import pytest
import torch
import transformers

from samparser.cli import main
from samparser.data import read_image
from samparser.methods import load_model
from samparser.prediction import SamPredictor, predict
from samparser.sam import default_processor, family_of, load_sam
from tests.sam.tiny import TINY, make_tiny

every_family = pytest.mark.parametrize("model_type", TINY)
BOXES = [[4, 5, 20, 40], [25, 8, 40, 40]]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A checkpoint folder of every family, with its processor."""
    root = tmp_path_factory.mktemp("families")
    for model_type in TINY:
        model = make_tiny(model_type)
        model.save_pretrained(root / model_type)
        default_processor(model).save_pretrained(root / model_type)
    return root


def quick(checkpoint, data, output, *more):
    return (
        *("train", "--model", checkpoint, "--data", data, "--output_dir", output, "--max_steps", 2),
        *("--report_to", "none", "--jitter_max", 2, "--learning_rate", 1e-3, "--coefficient_lr", 1e-2, *more),
    )


@every_family
def test_train_evaluate_predict_and_merge_in_a_row(model_type, checkpoints, toy_coco, tmp_path):
    assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / "run")) == 0
    adapter = tmp_path / "run" / "adapter"
    assert run("evaluate", adapter, "--data", toy_coco, "--split", "val", "--output", tmp_path / "scores") == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores == json.loads((tmp_path / "run" / "scores.json").read_text())
    assert run("merge", adapter, tmp_path / "merged") == 0

    model, processor = load_model(adapter)
    family = family_of(model)
    plain = getattr(transformers, family.model_class).from_pretrained(tmp_path / "merged").eval()
    image = read_image(toy_coco / "val" / "val-000.png")
    expected = predict(model, processor, image, boxes=BOXES)
    merged, merged_processor = load_sam(tmp_path / "merged")
    assert np.mean(predict(merged, merged_processor, image, boxes=BOXES) != expected) < 1e-3
    # The merged folder alone, by transformers' own forward: the same single masks.
    frame = family.frame(plain)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    boxes = torch.from_numpy(frame.to_input(np.array(BOXES), image.shape[:2]))[None]
    with torch.no_grad():
        logits = plain(pixel_values=pixels, input_boxes=boxes, multimask_output=False).pred_masks
    found = frame.to_original(logits[0, :, 0], image.shape[:2]).numpy() > 0
    assert np.mean(found != expected) < 1e-3


@every_family
def test_training_from_cached_features_is_training_from_pixels(model_type, checkpoints, toy_coco, tmp_path):
    for name, more in {"pixels": (), "cached": ("--cache", tmp_path / "cache", "--cache_dtype", "fp32")}.items():
        assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / name, "--eval_strategy", "no", *more)) == 0
    pixels, cached = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("pixels", "cached"))
    assert pixels == cached


@every_family
@pytest.mark.parametrize("prompt", ["point", "box,point"])
def test_other_prompts_than_boxes_train(model_type, prompt, checkpoints, toy_coco, tmp_path):
    words = ("--prompt", prompt, "--eval_strategy", "no", "--method", "samparser-coefficients")
    assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / "run", *words)) == 0


@every_family
def test_boxes_points_and_adapters_share_an_image(model_type, checkpoints, toy_coco, tmp_path):
    assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / "run", "--eval_strategy", "no")) == 0
    model, processor = load_model(tmp_path / "run" / "adapter")
    image = read_image(toy_coco / "val" / "val-000.png")
    predictor = SamPredictor(model, processor)
    predictor.set_image(image)
    both = predictor.predict(boxes=BOXES, adapters=["default", None])
    assert np.array_equal(both["default"], predict(model, processor, image, boxes=BOXES))
    base, _ = load_sam(checkpoints / model_type)
    assert np.array_equal(both[None], predict(base, processor, image, boxes=BOXES))
    points = predictor.predict(points=[[12, 24], [32, 24]])
    assert points.shape == (2, *image.shape[:2])
