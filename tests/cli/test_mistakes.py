"""Mistakes that users make, through the command line: each ends with one message that names it, and leaves nothing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SamModel

from samparser.cli import main
from samparser.methods import load_trained
from tests.conftest import write_toy_coco


@pytest.fixture
def failing(capsys):
    """A function: runs a command that must fail, and returns its one message."""

    def run(*words: object) -> str:
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        assert status == (1 if words[0] == "data" else 2), captured
        assert "Traceback" not in captured.err
        # `data check` prints its report; every other command ends with one message on standard error.
        return captured.out if words[0] == "data" else captured.err[captured.err.index("error: ") :]

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    """A small data set of one's own to spoil."""
    return write_toy_coco(tmp_path / "data", images=3, instances=2)


@pytest.fixture(scope="module")
def adapter(tiny_sam_folder, toy_coco, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main([*training(tiny_sam_folder, toy_coco, output), "--eval_split", "none", "--jitter_max", "2"]) == 0
    return output / "adapter"


def training(model: Path, data: Path, output: Path) -> list[str]:
    places = ["--model", str(model), "--data", str(data), "--output_dir", str(output)]
    return ["train", *places, "--max_steps", "1", "--report_to", "none", "--eval_strategy", "no"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expansion", "pair"], "choose from 'pairs', 'gradient', 'random'"),
        (["--expansion_rank", "4"], "There is no expansion to have 4 terms: give pairs, gradient or random as well"),
        (["--expansion", "pairs", "--method_options", '{"expansion": "random"}'], "expansion is given twice, as"),
        (
            ["--method", "expansion", "--expansion", "pairs"],
            "Method 'expansion' has no --expansion; these have it: samparser, samparser-coefficients, attention. Its "
            "own options, for --method_options, are: kind, rank, dtype, decoder, parametrization.",
        ),
        (["--method", "zero-shot", "--expansion", "pairs"], "for --method_options, are: none."),
        (["--expansion", "pairs", "--expansion_rank", "553"], "conv1 allows 552 of the kind 'pairs' at most"),
    ],
    ids=["kind", "rank-alone", "twice", "method", "no-options", "too-many"],
)
def test_an_expansion_that_cannot_be_is_named_and_leaves_nothing(
    failing, tiny_sam_folder, toy_coco, tmp_path, options, message
):
    assert message in failing(*training(tiny_sam_folder, toy_coco, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def edit_annotations(data: Path, change, split: str = "train") -> None:
    path = data / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def class_ids_from_zero(data: Path) -> None:
    def change(content):
        for annotation in content["annotations"]:
            annotation["category_id"] -= 1

    edit_annotations(data, change)


def no_instance_anywhere(data: Path) -> None:
    edit_annotations(data, lambda content: content.update(annotations=[]))


def every_image_resized(data: Path) -> None:
    for path in (data / "train").iterdir():
        with Image.open(path) as picture:
            half = picture.resize((picture.width // 2, picture.height // 2))
        half.save(path)


def one_image_in_two_splits(data: Path) -> None:
    shutil.copy(data / "train" / "train-001.png", data / "val" / "val-002.png")


def no_coco(data: Path) -> None:
    (data / "annotations" / "instances_train.json").write_text('{"info": []}')


def cut_off(data: Path) -> None:
    path = data / "annotations" / "instances_train.json"
    path.write_text(path.read_text()[:500])


def no_validation_images(data: Path) -> None:
    shutil.rmtree(data / "val")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (class_ids_from_zero, "have category_id 0, but its categories list has the ids 1, 2. The annotations seem to"),
        (no_instance_anywhere, "No image with an instance is left in the train split of"),
        (every_image_resized, "has 32 x 24 px, but instances_train.json says 64 x 48"),
        (one_image_in_two_splits, "train/train-001.png and val/val-002.png are the same file"),
        (no_coco, "is JSON but not a COCO annotation file: it has no list images"),
        (cut_off, "is not a JSON file, or only the beginning of one"),
        (no_validation_images, "None of the"),
    ],
)
def test_spoilt_data_stop_training_before_a_folder_is_made(failing, tiny_sam_folder, data, tmp_path, spoil, said):
    spoil(data)
    assert said in failing(*training(tiny_sam_folder, data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (class_ids_from_zero, "have category_id 0"),
        (no_instance_anywhere, "No image with an instance is left"),
        (every_image_resized, "cannot be read: 3 x it has 32 x 24 px"),
        (no_coco, "not a COCO annotation file"),
    ],
)
def test_spoilt_data_are_found_by_data_check(failing, data, spoil, said):
    spoil(data)
    report = failing("data", "check", data, "--contact_sheet", "none")
    assert said in report
    assert "This data set cannot be trained on" in report or "would stop a training run" in report


def test_an_image_in_two_splits_is_warned_of_by_data_check(data, capsys):
    one_image_in_two_splits(data)
    assert main(["data", "check", str(data), "--contact_sheet", "none"]) == 0
    assert "1 images are in more than one split, train/train-001.png (train)" in capsys.readouterr().out


def test_masks_of_another_size_are_one_line_however_many_they_are(failing, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        for folder, size in (("images", (40, 30)), ("masks", (20, 15))):
            (tmp_path / "own" / folder).mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 2, size[::-1], dtype=np.uint8) * 255
            Image.fromarray(values).save(tmp_path / "own" / folder / f"tile_{number}.png")
    report = failing("data", "check", tmp_path / "own", "--contact_sheet", "none", "--split", "train")
    assert "cannot be read: 4 x *.png has 20 x 15 px, but its image *.png has 40 x 30" in report


def test_images_that_do_not_open_and_images_without_instances_are_left_out_with_a_line_each(
    capsys, tiny_sam_folder, data, tmp_path
):
    (data / "train" / "train-000.png").write_text("no image")
    whole = (data / "train" / "train-001.png").read_bytes()
    (data / "train" / "train-001.png").write_bytes(whole[: len(whole) // 2])
    words = [*training(tiny_sam_folder, data, tmp_path / "run"), "--eval_split", "none", "--jitter_max", "2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "train: 1 image of layout coco, 2 entries skipped" in out
    assert "skipped train/train-000.png" in out
    assert "skipped train/train-001.png" in out
    assert "does not open: image file is truncated" in out


def test_five_hundred_instances_in_an_image_are_trained_on_a_few_at_a_time(capsys, tiny_sam_folder, tmp_path):
    labels = np.zeros((500, 500), dtype=np.uint16)
    for number in range(500):
        y, x = 20 * (number // 25), 20 * (number % 25)
        labels[y + 4 : y + 16, x + 4 : x + 16] = number + 1
    for folder, values in (("images", np.uint8(labels % 251)), ("masks", labels)):
        (tmp_path / "own" / folder).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "own" / folder / "crowd.png")
    words = [*training(tiny_sam_folder, tmp_path / "own", tmp_path / "run"), "--instances", "ids", "--val_ratio", "0"]
    sheet = tmp_path / "sheet.png"
    data = ["--instances", "ids", "--val_ratio", "0"]
    assert main(["data", "check", str(tmp_path / "own"), "--contact_sheet", str(sheet), *data]) == 0
    assert "at most 500 instances in an image" in capsys.readouterr().out
    assert sheet.is_file()
    assert main([*words, "--eval_split", "none", "--jitter_max", "2", "--max_instances", "8"]) == 0


def test_a_pool_too_small_for_its_ratio_says_so(failing, tiny_sam_folder, tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
        Image.fromarray(np.eye(30, dtype=np.uint8) * 255).save(tmp_path / "own" / folder / "one.png")
    message = failing(*training(tiny_sam_folder, tmp_path / "own", tmp_path / "run"))
    assert "split of" in message
    assert "is empty: its ratio of the images that there are comes to none. Set val_ratio" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method_options", "[1]"], '--method_options must be a JSON object such as {"rank": 64}; got [1]'),
        (["--lr_scheduler_type", "wavy"], "lr_scheduler_type is 'wavy'; known are linear, cosine"),
        (["--report_to", "wandb"], "pip install wandb"),
        (["--classes", "cel"], "There is no class 'cel'. Did you mean 'cell'? Classes: cell, blob."),
        (["--learning_rat", "-0.1"], "learning_rate is -0.1; it must be greater than 0"),
        (["--eval-split", "train"], "train/train-000.png is in both the training and the validation set"),
        (["--jiter_max", "3"], "There is no option --jiter_max. Did you mean '--jitter_max'?"),
        (["--min_area", "many"], "invalid int value: 'many'"),
    ],
)
def test_options_that_cannot_be_are_answered_before_a_folder_is_made(
    failing, tiny_sam_folder, data, tmp_path, options, said
):
    assert said in failing(*training(tiny_sam_folder, data, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        "predict {model} {data} --output {out} --grid 0",
        "predict {model} {data} --output {out} --grid 3 --batch 0",
        "evaluate {model} --data {data} --limit_images 0",
        "compare none.json --output {out} --processes 0",
        "compare none.json --output {out} --seeds -1",
    ],
)
def test_numbers_of_nothing_are_refused_before_anything_is_loaded(failing, tmp_path, command):
    words = [word.format(model="no-model", data=tmp_path, out=tmp_path / "out") for word in command.split()]
    assert f"{words[-2]} is {words[-1]}; it must be at least 1." in failing(*words)
    assert not (tmp_path / "out").exists()


def test_results_never_go_where_other_files_are(failing, tiny_sam_folder, toy_coco, adapter, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    file = tmp_path / "mine" / "thesis.txt"
    picture = toy_coco / "val" / "val-000.png"
    words = training(tiny_sam_folder, toy_coco, tmp_path / "mine")
    assert "is not empty and holds no run" in failing(*words, "--eval_split", "none")
    assert "is a file; choose another output folder" in failing(*training(tiny_sam_folder, toy_coco, file))
    for command in (
        ("evaluate", tiny_sam_folder, "--data", toy_coco, "--output", file),
        ("predict", tiny_sam_folder, picture, "--grid", 2, "--output", file),
        ("merge", adapter, file),
    ):
        assert "thesis.txt is a file; name a folder" in failing(*command)
    assert "is not empty" in failing("merge", adapter, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    assert file.read_text() == "years"


def test_scores_replace_those_of_an_earlier_evaluation_and_nothing_else(failing, tiny_sam_folder, adapter, toy_coco):
    run = adapter.parent
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    said = failing("evaluate", tiny_sam_folder, "--data", toy_coco, "--output", run)
    assert "settings.json" in said
    assert "which `samparser evaluate` did not write and would replace; name another folder" in said
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    words = ["evaluate", tiny_sam_folder, "--data", toy_coco, "--limit_images", 1, "--output", run.parent / "scores"]
    for _ in range(2):
        assert main([str(word) for word in words]) == 0
    (run.parent / "scores" / "settings.json").unlink()
    assert "scores.csv, " in failing(*words)


def test_an_output_that_can_be_no_folder_is_named_first(failing, tiny_sam_folder, toy_coco, adapter, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    picture = toy_coco / "val" / "val-000.png"
    for out, reason in ((tmp_path / "file" / "x", "file is a file"), (tmp_path / "link", "link is a link to what is")):
        for command in (
            training(tiny_sam_folder, toy_coco, out),
            ("evaluate", tiny_sam_folder, "--data", toy_coco, "--output", out),
            ("predict", tiny_sam_folder, picture, "--grid", 2, "--output", out),
            ("merge", adapter, out),
            ("inspect", adapter, "--output", out),
        ):
            assert reason in failing(*command)
        cached = training(tiny_sam_folder, toy_coco, tmp_path / "run")
        assert reason in failing(*cached, "--method", "samparser-coefficients", "--cache", out)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_contact_sheet_that_is_no_picture_is_refused_before_anything_is_read(capsys, tmp_path, data):
    assert main(["data", "check", str(data), "--contact_sheet", str(tmp_path / "sheet.txt")]) == 2
    assert "its name ends in .bmp, .jpeg, .jpg, .png" in capsys.readouterr().err


def without_decoder(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if "mask_decoder" not in name}
    save_file(kept, path, metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:20000])


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def broken_configuration(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": ')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_decoder, "lacks the weights of 'mask_decoder', which adapter_config.json says were trained"),
        (truncated, "adapter_model.safetensors (20,000 bytes) is damaged or cut off"),
        (without_weights, "has adapter_config.json but no adapter_model.safetensors: it is incomplete"),
        (broken_configuration, "adapter_config.json is damaged"),
    ],
)
def test_a_damaged_adapter_is_refused_by_every_command(failing, adapter, toy_coco, tmp_path, spoil, said):
    shutil.copytree(adapter, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    picture = toy_coco / "val" / "val-000.png"
    for command in (
        ("evaluate", tmp_path / "adapter", "--data", toy_coco, "--output", tmp_path / "out"),
        ("predict", tmp_path / "adapter", picture, "--grid", 2, "--output", tmp_path / "out"),
        ("merge", tmp_path / "adapter", tmp_path / "out"),
    ):
        assert said in failing(*command)
        assert not (tmp_path / "out").exists()


def commands_on(adapter, data, output, *more):
    picture = data / "val" / "val-000.png"
    return (
        ("evaluate", adapter, "--data", data, "--output", output / "scores", *more),
        ("predict", adapter, picture, "--grid", 2, "--output", output / "masks", *more),
        ("merge", adapter, output / "merged", *more),
    )


def test_another_base_is_refused_by_every_command_unless_asked_for(
    failing, adapter, toy_coco, tiny_processor, other_tiny_sam, tmp_path
):
    other = tmp_path / "other"
    other_tiny_sam.save_pretrained(other)
    tiny_processor.save_pretrained(other)
    for command in commands_on(adapter, toy_coco, tmp_path, "--base", other):
        message = failing(*command)
        assert "does not fit this base model" in message
        assert "command line: --check_base false" in message
        with pytest.warns(UserWarning, match="this base weight is not the one the adapter was trained on"):
            assert main([str(word) for word in (*command, "--check_base", "false")]) == 0
    with pytest.warns(UserWarning, match="this base weight is not the one the adapter was trained on"):
        tuned = load_trained(SamModel.from_pretrained(other), adapter, check_base=False)
    expected = tuned.merge_and_unload()
    found = SamModel.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())
    settings = json.loads((tmp_path / "scores" / "settings.json").read_text())
    assert settings["loading"] == {"base": str(other), "check_base": False, "check_weights": True, "frame": None}


def test_weights_that_were_changed_are_refused_by_every_command_unless_asked_for(failing, adapter, toy_coco, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed)
    file = changed / "adapter_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    for command in commands_on(changed, toy_coco, tmp_path):
        message = failing(*command)
        assert "is not the file that was saved" in message
        assert "the command line with --check_weights false" in message
        assert main([str(word) for word in (*command, "--check_weights", "false")]) == 0
    once = load_file(tmp_path / "merged" / "model.safetensors")["mask_decoder.iou_token.weight"]
    assert torch.equal(once, load_file(file)["base_model.model.mask_decoder.iou_token.weight"])


@pytest.mark.parametrize("check", ["check_base", "check_weights"])
def test_a_check_of_adapters_is_refused_for_a_whole_model(failing, check, toy_coco, tiny_sam_folder, tmp_path):
    evaluate, predict, _ = commands_on(tiny_sam_folder, toy_coco, tmp_path, f"--{check}", "false")
    for command in (evaluate, predict):
        assert f"is a whole model, so {check}=False has no use. Leave it out." in failing(*command)


def test_merging_what_is_no_adapter_says_what_it_is(failing, adapter, tiny_sam_folder, tmp_path):
    assert "is a whole model already, so there is nothing to merge" in failing("merge", tiny_sam_folder, tmp_path / "m")
    assert f"Did you mean {adapter}?" in failing("merge", adapter.parent, tmp_path / "m")
    assert "There is no folder" in failing("merge", tmp_path / "gone", tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[100, 200, 900, 1000]], "They would fit the input of the published SAMs (longest side 1024)"),
        ([[0.1, 0.2, 0.5, 0.6]], "they look normalised. Boxes are in pixels of the original image: multiply x by"),
        ([[50, 30, 8, 9], [40, 20, 10, 12]], "They look like COCO's (x, y, width, height): pass (x, y, x + width"),
        ([[5, 40, 30, 60]], "is outside the image of 64 x 48 (width x height) pixels"),
        ([5, 4, 30, 40], "expected a list of [x0, y0, x1, y1]"),
    ],
)
def test_boxes_in_a_wrong_frame_are_recognised(failing, tiny_sam_folder, toy_coco, tmp_path, boxes, said):
    (tmp_path / "boxes.json").write_text(json.dumps({"val-000.png": boxes}))
    picture = toy_coco / "val" / "val-000.png"
    command = ("predict", tiny_sam_folder, picture, "--boxes", tmp_path / "boxes.json", "--output", tmp_path / "out")
    assert said in failing(*command)
    assert not (tmp_path / "out").exists()


def test_prompts_and_images_that_are_not_there_are_named(failing, tiny_sam_folder, toy_coco, tmp_path):
    picture = toy_coco / "val" / "val-000.png"
    to = ("--output", tmp_path / "out")
    annotations = toy_coco / "annotations" / "instances_val.json"
    (tmp_path / "junk.png").write_text("junk")
    (tmp_path / "points.json").write_text(json.dumps({"val-000.png": [[10, 480]]}))
    predict = ("predict", tiny_sam_folder)
    assert "no prompt file" in failing(*predict, picture, "--boxes", tmp_path / "gone.json", *to)
    assert "is a COCO annotation file" in failing(*predict, picture, "--boxes", annotations, *to)
    assert "no image or folder" in failing(*predict, tmp_path / "gone.png", "--grid", 2, *to)
    assert "junk.png is not an image" in failing(*predict, picture, tmp_path / "junk.png", "--grid", 2, *to)
    assert "(10, 480) is outside the image" in failing(*predict, picture, "--points", tmp_path / "points.json", *to)
    assert not (tmp_path / "out").exists()
