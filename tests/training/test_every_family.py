"""The verbs on a small saved checkpoint of every family."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from pycocotools import mask as mask_codec
from safetensors.torch import load_file

from samparser.cli import main
from samparser.data import read_image
from samparser.methods import load_model
from samparser.prediction import SamPredictor, predict
from samparser.prediction.predictor import MASKS_AS_RELEASED, MASKS_AS_TUNED
from samparser.sam import FAMILIES, count_coefficients, default_processor, family_of, load_sam
from samparser.tuner import coefficients
from tests.sam.tiny import TINY, make_tiny

every_family = pytest.mark.parametrize("model_type", TINY)
BOXES = [[4, 5, 20, 40], [25, 8, 40, 40]]
POINTS = [[12, 24], [32, 24]]


def run(*words):
    return main([str(word) for word in words])


def quick(checkpoint, data, output, *more):
    return (
        *("train", "--model", checkpoint, "--data", data, "--limit", 2, "--output_dir", output, "--max_steps", 2),
        *("--report_to", "none", "--jitter_max", 2, "--learning_rate", 1e-3, "--coefficient_lr", 1e-2, *more),
    )


def read(path):
    return json.loads(path.read_text())


def masks_of(folder):
    """The masks that `predict` wrote, in the order of the prompts."""
    return (
        np.stack([mask_codec.decode(found["segmentation"]) for found in read(folder / "masks.json")["annotations"]]) > 0
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint folder of every family, with its processor."""
    root = tmp_path_factory.mktemp("families")
    for model_type in TINY:
        model = make_tiny(model_type)
        model.save_pretrained(root / model_type)
        default_processor(model).save_pretrained(root / model_type)
    return root


@pytest.fixture(scope="module")
def runs(checkpoints, toy_coco, tmp_path_factory):
    """A function: the finished run of a family, with coefficients and decoder on boxes, or coefficients on points."""
    root = tmp_path_factory.mktemp("runs")
    points = ("--prompt", "point", "--eval_strategy", "no", "--method", "samparser-coefficients")
    words = {"box": (), "point": points}

    def finished(model_type, prompt="box"):
        output = root / model_type / prompt
        if not output.exists():
            assert run(*quick(checkpoints / model_type, toy_coco, output, *words[prompt])) == 0
        return output

    return finished


@every_family
def test_train_evaluate_and_merge_in_a_row(model_type, runs, toy_coco, tmp_path):
    adapter = runs(model_type) / "adapter"
    assert run("evaluate", adapter, "--data", toy_coco, "--limit", 2, "--output", tmp_path / "scores") == 0
    assert read(tmp_path / "scores" / "scores.json") == read(runs(model_type) / "scores.json")
    assert run("merge", adapter, tmp_path / "merged") == 0

    model, processor = load_model(adapter)
    family = family_of(model)
    plain = getattr(transformers, family.model_class).from_pretrained(tmp_path / "merged").eval()
    assert not family.replaces_unstable(plain)
    if family.replaces_unstable_masks:
        decoder = read(tmp_path / "merged" / "config.json")["mask_decoder_config"]
        assert decoder["dynamic_multimask_via_stability"] is False
    image = read_image(toy_coco / "val" / "val-000.png")
    # The merged folder alone, by its processor and transformers' own forward: the same single masks.
    merged, merged_processor = load_sam(tmp_path / "merged")
    pixels = merged_processor.image_processor(image, return_tensors="pt")["pixel_values"]
    frame = family.frame(plain)
    boxes = torch.from_numpy(frame.to_input(np.array(BOXES), image.shape[:2]))[None]
    with torch.no_grad():
        logits = plain(pixel_values=pixels, input_boxes=boxes, multimask_output=False).pred_masks
    found = frame.to_original(logits[0, :, 0], image.shape[:2]).numpy() > 0
    assert np.array_equal(predict(merged, merged_processor, image, boxes=BOXES), found)
    # Merging rounds once.
    assert np.mean(predict(model, processor, image, boxes=BOXES) != found) < 1e-3
    assert found.any()


@every_family
def test_training_from_cached_features_is_training_from_pixels_bit_for_bit(
    model_type, runs, checkpoints, toy_coco, tmp_path
):
    words = ("--cache", tmp_path / "cache", "--cache_dtype", "fp32")
    assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / "run", *words)) == 0
    folders = (runs(model_type), tmp_path / "run")
    pixels, cached = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders)
    assert pixels.keys() == cached.keys()
    assert all(torch.equal(pixels[name], cached[name]) for name in pixels)
    assert read(runs(model_type) / "scores.json") == read(tmp_path / "run" / "scores.json")


@every_family
def test_every_coefficient_trains_and_their_number_is_said(model_type, checkpoints, toy_coco, tmp_path, capsys):
    words = ("--method", "samparser-coefficients", "--eval_split", "none", "--prompt", "box,point")
    assert run(*quick(checkpoints / model_type, toy_coco, tmp_path / "run", *words)) == 0
    model, _ = load_model(tmp_path / "run" / "adapter")
    spectra = coefficients(model).values()
    expected = count_coefficients(make_tiny(model_type))
    assert sum(len(after) for _, after in spectra) == expected
    assert all((before != after).all() for before, after in spectra)
    said = capsys.readouterr().out
    assert f"{expected} coefficients trained, the singular values of {len(spectra)} layers" in said


@every_family
def test_a_run_on_points_is_scored_with_points_and_says_what_tuning_changed(model_type, runs):
    for name in ("scores.json", "scores_before.json"):
        prompt = read(runs(model_type, "point") / name)["definitions"]["prompt"]
        assert prompt == "For each instance 1 point: the one furthest from the mask's border."
    card = (runs(model_type, "point") / "adapter" / "README.md").read_text()
    assert "after tuning" in card
    assert "For each instance 1 point" in card


@every_family
def test_scores_name_whose_masks_they_are_of(model_type, runs, checkpoints, toy_coco, tmp_path, capsys):
    words = ("--data", toy_coco, "--limit", 2, "--output")
    assert run("evaluate", checkpoints / model_type, *words, tmp_path / "zero-shot") == 0
    zero_shot = capsys.readouterr().out
    run_folder = runs(model_type)
    found = {
        "zero-shot": read(tmp_path / "zero-shot" / "scores.json"),
        "before": read(run_folder / "scores_before.json"),
        "after": read(run_folder / "scores.json"),
    }
    said = {name: content["definitions"].get("masks") for name, content in found.items()}
    card = (run_folder / "adapter" / "README.md").read_text()
    if FAMILIES[model_type].replaces_unstable_masks:
        assert said == {"zero-shot": MASKS_AS_RELEASED, "before": MASKS_AS_RELEASED, "after": MASKS_AS_TUNED}
        assert "masks: As the model was released" in zero_shot
        assert "masks before: As the model was released" in card
        assert "masks after: Of the head that tuning trains" in card
    else:
        assert said == dict.fromkeys(found)
        assert "masks before" not in card


@every_family
def test_adapters_share_one_run_of_the_frozen_trunk(model_type, runs, checkpoints, toy_coco, monkeypatch):
    model, processor = load_model(runs(model_type) / "adapter")
    model.load_adapter(runs(model_type, "point") / "adapter", "points")
    image = read_image(toy_coco / "val" / "val-000.png")
    family, encoded = family_of(model), []
    original = type(family).encode

    def counted(self, *arguments):
        encoded.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(type(family), "encode", counted)
    predictor = SamPredictor(model, processor)
    predictor.set_image(image)
    # `default` brings a decoder of its own, with the convolutions that work on the neck's maps; the others do not.
    together = predictor.predict(boxes=BOXES, adapters=["default", None, "points"])
    assert len(encoded) == 1
    monkeypatch.undo()
    alone = {
        "default": load_model(runs(model_type) / "adapter")[0],
        None: load_sam(checkpoints / model_type)[0],
        "points": load_model(runs(model_type, "point") / "adapter")[0],
    }
    for name, other in alone.items():
        assert np.array_equal(together[name], predict(other, processor, image, boxes=BOXES)), name
    assert not np.array_equal(together["default"], together[None])


@every_family
@pytest.mark.parametrize(("kind", "prompts"), [("boxes", BOXES), ("points", POINTS)])
def test_predict_writes_the_masks_of_the_library(model_type, kind, prompts, runs, toy_coco, tmp_path):
    path = toy_coco / "val" / "val-000.png"
    (tmp_path / "prompts.json").write_text(json.dumps({path.name: prompts}))
    words = (f"--{kind}", tmp_path / "prompts.json", "--output", tmp_path / "out")
    assert run("predict", runs(model_type) / "adapter", path, *words) == 0
    expected = predict(*load_model(runs(model_type) / "adapter"), read_image(path), **{kind: prompts})
    assert np.array_equal(masks_of(tmp_path / "out"), expected)


@every_family
def test_compare_sets_zero_shot_beside_tuning_and_names_their_masks(model_type, checkpoints, toy_coco, tmp_path):
    content = {
        **{"name": "small", "title": "Small", "model": str(checkpoints / model_type), "seeds": [0]},
        "data": [{"name": "toy", "folder": toy_coco.name, "source": "tests", "files": ["train/*.png"]}],
        "methods": [{"method": "zero-shot"}, {"method": "samparser-coefficients"}],
        **{"reference": "zero-shot", "training": {"max_steps": 1}, "prompts": {"jitter_max": 2}},
    }
    (tmp_path / "small.json").write_text(json.dumps(content))
    words = ("--data_root", toy_coco.parent, "--limit", 2, "--cost", "false", "--output", tmp_path / "out")
    assert run("compare", tmp_path / "small.json", *words) == 0
    page, rows = (
        (tmp_path / "out" / "small.md").read_text(),
        read(tmp_path / "out" / "small.json")["data"]["toy"]["rows"],
    )
    replaces = FAMILIES[model_type].replaces_unstable_masks
    assert ("Masks of zero-shot: As the model was released" in page) is replaces
    assert ("Masks of samparser-coefficients: Of the head that tuning trains" in page) is replaces
    assert [row["masks"] for row in rows.values()] == (
        [MASKS_AS_RELEASED, MASKS_AS_TUNED] if replaces else [None, None]
    )


@every_family
def test_what_is_pushed_loads_on_its_base(model_type, runs, checkpoints, toy_coco, tmp_path, monkeypatch):
    def upload(repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "address"

    hub = SimpleNamespace(create_repo=lambda *_, **__: None, upload_folder=upload)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert run("push", runs(model_type) / "adapter", "someone/adapter") == 0
    image = read_image(toy_coco / "val" / "val-000.png")
    pushed = load_model(tmp_path / "someone" / "adapter", base=checkpoints / model_type)
    expected = predict(*load_model(runs(model_type) / "adapter"), image, boxes=BOXES)
    assert np.array_equal(predict(*pushed, image, boxes=BOXES), expected)
    assert FAMILIES[model_type].model_class in (tmp_path / "someone" / "adapter" / "README.md").read_text()
