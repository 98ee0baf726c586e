"""`--frame`: said once, at training, and known by every later verb."""

import json
import shutil

import pytest

from samparser.cli import main
from samparser.compare import parse_experiment
from samparser.compare.workspace import Workspace
from samparser.methods import load_model
from samparser.sam import SquareProcessor, Squashed, frame_of


@pytest.fixture(scope="module")
def bare(tiny_sam_folder, tmp_path_factory):
    """The tiny checkpoint without its processor, as MedSAM's are."""
    folder = tmp_path_factory.mktemp("medsam") / "base"
    ignore = shutil.ignore_patterns("preprocessor_config.json", "processor_config.json")
    return shutil.copytree(tiny_sam_folder, folder, ignore=ignore)


def run(*words):
    return main([str(word) for word in words])


def train(bare, data, output, *more):
    return run(
        *("train", "--model", bare, "--data", data, "--output_dir", output, "--max_steps", 2, "--jitter_max", 2),
        *("--eval_strategy", "no", "--report_to", "none", *more),
    )


@pytest.fixture(scope="module")
def trained(bare, toy_coco, tmp_path_factory):
    """A run on the bare checkpoint, whose images are squashed as MedSAM's."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert train(bare, toy_coco, output, "--frame", "medsam") == 0
    return output


def test_training_asks_and_writes_nothing(bare, toy_coco, tmp_path, capsys):
    assert train(bare, toy_coco, tmp_path / "run") == 2
    assert "Say it with --frame" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_run_adapter_and_card_say_what_was_chosen(trained):
    assert json.loads((trained / "settings.json").read_text())["frame"] == "medsam"
    assert json.loads((trained / "adapter" / "method.json").read_text())["frame"] == "medsam"
    assert "trained with the frame `medsam`" in (trained / "adapter" / "README.md").read_text()


def test_later_verbs_know_it(trained, toy_coco, tmp_path):
    words = ("--data", toy_coco, "--split", "val", "--output")
    assert run("evaluate", trained / "adapter", *words, tmp_path / "scores") == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores == json.loads((trained / "scores.json").read_text())
    image = toy_coco / "val" / "val-000.png"
    (tmp_path / "boxes.json").write_text(json.dumps({image.name: [[4, 5, 20, 40]]}))
    assert run("predict", trained / "adapter", image, "--boxes", tmp_path / "boxes.json", "--output", tmp_path) == 0
    assert run("merge", trained / "adapter", tmp_path / "merged") == 0
    assert run("evaluate", tmp_path / "merged", *words, tmp_path / "merged-scores") == 0
    assert scores == json.loads((tmp_path / "merged-scores" / "scores.json").read_text())


def test_another_frame_than_that_of_training_is_refused(trained, toy_coco, capsys):
    assert run("evaluate", trained / "adapter", "--data", toy_coco, "--frame", "squashed") == 2
    assert "was trained with frame 'medsam', and 'squashed' was asked for" in capsys.readouterr().err


def test_an_adapter_that_says_nothing_asks_for_the_frame_of_its_base(trained, tmp_path):
    shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "method.json").unlink()
    with pytest.raises(ValueError, match=r"was trained on .*Say it with --frame"):
        load_model(tmp_path / "adapter")
    _, processor = load_model(tmp_path / "adapter", frame="medsam")
    assert frame_of(processor) == Squashed(64)


def test_a_saved_processor_gives_way_to_what_was_said(tiny_sam_folder, toy_coco, tmp_path, capsys):
    assert train(tiny_sam_folder, toy_coco, tmp_path / "run", "--frame", "squashed") == 0
    (left, padded), (right, squashed) = load_model(tiny_sam_folder), load_model(tmp_path / "run" / "adapter")
    assert frame_of(padded) != frame_of(squashed) == Squashed(64)
    assert isinstance(squashed, SquareProcessor)
    assert left.config.model_type == right.get_base_model().config.model_type


def test_a_comparison_says_it_too(bare, tmp_path, toy_coco):
    content = {
        **{"name": "small", "title": "Small", "model": str(bare), "frame": "medsam"},
        "data": [{"name": "toy", "folder": toy_coco.name, "source": "tests", "files": ["train/*.png"]}],
        "methods": [{"method": "decoder"}],
    }
    workspace = Workspace(parse_experiment(content), toy_coco.parent, tmp_path)
    assert frame_of(workspace.processor) == Squashed(64)
    assert workspace.model_settings()["frame"] == "medsam"
    with pytest.raises(ValueError, match=r"frame must be 'padded' or 'squashed' or 'medsam' or null"):
        parse_experiment({**content, "frame": "stretched"})
