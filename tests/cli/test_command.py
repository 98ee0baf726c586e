import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import SamModel, pipeline
from transformers.models.sam import image_processing_pil_sam

from samparser.cli import main
from samparser.data import read_image
from samparser.methods import load_model
from samparser.prediction import generate_masks
from samparser.prediction.suppression import non_maximum_suppression


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def quick(model, data, output, *more):
    return (
        *("train", "--model", model, "--data", data, "--output_dir", output, "--max_steps", 2, "--report_to", "none"),
        *("--jitter_max", 2, "--eval_strategy", "no", *more),
    )


@pytest.fixture(scope="module")
def trained(tiny_sam_folder, toy_coco, tmp_path_factory):
    """A finished run of two steps."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert main([str(a) for a in quick(tiny_sam_folder, toy_coco, output)]) == 0
    return output


def test_the_methods_are_listed(capsys):
    status, out, _ = run(capsys, "methods")
    assert status == 0
    assert "zero-shot" in out
    assert "samparser-coefficients" in out


def test_train_evaluate_merge_and_predict_in_a_row(capsys, tiny_sam_folder, toy_coco, trained, tmp_path):
    status, out, _ = run(
        capsys, "evaluate", trained / "adapter", "--data", toy_coco, "--split", "val", "--output", tmp_path / "scores"
    )
    assert status == 0
    tuned = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert json.loads((trained / "scores.json").read_text()) == tuned

    merged = tmp_path / "merged"
    status, out, _ = run(capsys, "merge", trained / "adapter", merged)
    assert status == 0
    assert "SamModel.from_pretrained" in out
    assert type(SamModel.from_pretrained(merged)) is SamModel
    status, _, _ = run(capsys, "evaluate", merged, "--data", toy_coco, "--output", tmp_path / "merged-scores")
    assert status == 0
    again = json.loads((tmp_path / "merged-scores" / "scores.json").read_text())
    assert again == tuned

    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(toy_coco / "val" / "val-000.png", images)
    (tmp_path / "boxes.json").write_text(json.dumps({"val-000.png": [[4, 5, 20, 40], [25, 8, 40, 40]]}))
    status, out, _ = run(
        capsys,
        *("predict", merged, images, "--output", tmp_path / "out", "--boxes", tmp_path / "boxes.json"),
    )
    assert status == 0
    assert json.loads((tmp_path / "out" / "masks.json").read_text())["annotations"]
    with Image.open(next((tmp_path / "out").rglob("*val-000*.png"))) as picture:
        assert picture.size[0] >= 64


@pytest.mark.parametrize("kind", ["pairs", "gradient"])
def test_an_expansion_trains_and_is_scored_merged_and_used_like_any_adapter(
    capsys, tiny_sam_folder, toy_coco, tmp_path, kind
):
    words = (
        "--method",
        "samparser-coefficients",
        "--expansion",
        kind,
        "--expansion_rank",
        3,
        "--cache",
        tmp_path / "f",
    )
    status, out, _ = run(capsys, *quick(tiny_sam_folder, toy_coco, tmp_path / "run", *words, "--disable_tqdm", "false"))
    assert status == 0
    assert "62 parameters trained (62 in the neck)" in out
    assert "chosen on 3 batches, measured on 3 others" in out
    adapter = tmp_path / "run" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert sum(tensor.numel() for name, tensor in tensors.items() if name[-2:] in ("_d", "_c")) == 62
    assert "- Trained parameters: 62 (56 coefficients, 6 terms)" in (adapter / "README.md").read_text()
    status, _, _ = run(capsys, "merge", adapter, tmp_path / "merged")
    assert status == 0
    scores = []
    for name, path in (("tuned", adapter), ("merged", tmp_path / "merged")):
        assert run(capsys, "evaluate", path, "--data", toy_coco, "--output", tmp_path / name)[0] == 0
        scores.append((tmp_path / name / "scores.csv").read_text())
    assert scores[0] == scores[1] != run(capsys, "evaluate", tiny_sam_folder, "--data", toy_coco)[1]
    assert run(capsys, "predict", adapter, toy_coco / "val", "--output", tmp_path / "masks", "--grid", 2)[0] == 0


def test_a_merged_model_works_in_the_mask_generation_pipeline_of_transformers(
    capsys, toy_coco, trained, tmp_path, monkeypatch
):
    """All of transformers' pipeline on the merged folder. Only torchvision's batched_nms has a stand-in: ours."""
    assert run(capsys, "merge", trained / "adapter", tmp_path / "merged")[0] == 0

    def last_step(self, masks, scores, boxes, threshold):
        modules = {name: ModuleType(name) for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes")}
        modules["torchvision.ops.boxes"].batched_nms = lambda boxes, scores, idxs, iou_threshold: (
            non_maximum_suppression(boxes, scores, iou_threshold)
        )
        with monkeypatch.context() as patch:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            return image_processing_pil_sam._post_process_for_mask_generation(masks, scores, boxes, threshold)

    generator = pipeline("mask-generation", model=str(tmp_path / "merged"))
    monkeypatch.setattr(type(generator.image_processor), "post_process_for_mask_generation", last_step)
    picture = str(toy_coco / "val" / "val-000.png")
    lenient = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    found = generator(picture, points_per_crop=3, points_per_batch=9, **lenient)
    model, processor = load_model(trained / "adapter")
    expected = generate_masks(model, processor, read_image(picture), points_per_side=3, batch=9, **lenient)
    assert len(found["masks"]) == len(expected.masks) > 0
    assert np.mean(np.stack(found["masks"]) != expected.masks) < 1e-3


def test_points_and_a_grid_segment_as_boxes_do(capsys, toy_coco, trained, tmp_path):
    picture = toy_coco / "val" / "val-000.png"
    (tmp_path / "points.json").write_text(json.dumps({"val-000.png": [[12, 24], [32, 24], [52, 24]]}))
    for prompts in (("--points", tmp_path / "points.json", "--batch", 2), ("--grid", 2)):
        out = tmp_path / prompts[0].strip("-")
        status, said, _ = run(capsys, "predict", trained / "adapter", picture, "--output", out, *prompts)
        assert status == 0
        assert "1 image segmented" in said
        assert sorted(path.name for path in out.iterdir()) == ["masks", "masks.json", "overlays"]
    assert len(json.loads((tmp_path / "points" / "masks.json").read_text())["annotations"]) == 3


def test_the_adapter_of_the_default_method_holds_coefficients_and_decoder(trained):
    names = set(load_file(trained / "adapter" / "adapter_model.safetensors"))
    assert any("svd_coefficient" in name and "neck.conv1" in name for name in names)
    assert any("mask_decoder" in name for name in names)
    assert not any("layers" in name and "vision_encoder" in name for name in names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--model": "no/such/folder"}, "no/such/folder"),
        ({"--data": "no/such/data"}, "no/such/data"),
        ({"--method": "magic"}, "magic"),
        ({"--method_options": "{nonsense"}, "--method_options is not JSON"),
        ({"--recipe": "surgical"}, "surgical"),
        ({"--learning_rate": "-1"}, "learning_rate is -1.0; it must be greater than 0"),
        ({"--train_split": "nowhere"}, "nowhere"),
    ],
)
def test_a_mistake_ends_with_a_message_and_leaves_no_folder(capsys, tiny_sam_folder, toy_coco, tmp_path, change, said):
    words = [str(word) for word in quick(tiny_sam_folder, toy_coco, tmp_path / "run")]
    for option, value in change.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_settings_in_the_output_folder_is_named(capsys, tiny_sam_folder, toy_coco, trained):
    before = (trained / "settings.json").read_bytes()
    status, _, err = run(capsys, *quick(tiny_sam_folder, toy_coco, trained, "--seed", 5))
    assert status == 2
    assert "train.seed: 0 there, 5 now" in err
    assert (trained / "settings.json").read_bytes() == before


def test_merging_into_a_folder_with_files_is_refused(capsys, trained, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    status, _, err = run(capsys, "merge", trained / "adapter", tmp_path)
    assert status == 2
    assert "is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_merge_that_fails_while_writing_leaves_nothing(capsys, trained, tmp_path, monkeypatch):
    def full(self, folder, **options):
        (folder / "half").touch()
        raise OSError("No space left on device")

    monkeypatch.setattr(SamModel, "save_pretrained", full)
    status, _, err = run(capsys, "merge", trained / "adapter", tmp_path / "merged")
    assert status == 2
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_predict_wants_exactly_one_kind_of_prompt(capsys, tiny_sam_folder, tmp_path):
    status, _, err = run(capsys, "predict", tiny_sam_folder, tmp_path, "--output", tmp_path / "out")
    assert status == 2
    assert "exactly one of --boxes, --points and --grid; given: none" in err


def test_traceback_is_shown_when_asked_for(tmp_path):
    with pytest.raises((OSError, ValueError)):
        main(["--traceback", "evaluate", str(tmp_path / "nothing"), "--data", str(tmp_path)])


def test_checking_a_data_set_prints_counts_and_draws(capsys, toy_coco, tmp_path):
    sheet = tmp_path / "sheet.png"
    status, out, _ = run(capsys, "data", "check", toy_coco, "--contact_sheet", sheet)
    assert status == 0
    assert "6" in out
    assert "18" in out
    with Image.open(sheet) as picture:
        assert min(picture.size) > 100


def test_push_uploads_the_adapter_folder_and_nothing_else(tmp_path, monkeypatch, capsys):
    calls = []

    class FakeApi:
        def create_repo(self, repo, **options):
            calls.append(("create", repo, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (adapter / name).write_text("{}")
    (tmp_path / "run" / "scores.json").write_text("{}")

    assert main(["push", str(adapter), "somebody/cells", "--private", "True"]) == 0
    assert calls == [
        ("create", "somebody/cells", {"private": True, "exist_ok": True}),
        ("upload", "somebody/cells", ["README.md", "adapter_config.json", "adapter_model.safetensors"]),
    ]
    assert "https://huggingface.co/somebody/cells" in capsys.readouterr().out

    calls.clear()
    assert main(["push", str(tmp_path / "run"), "somebody/cells"]) == 2  # the run holds the adapter, and is not one
    assert calls == []


def test_a_push_that_does_not_reach_the_hub_says_what_to_look_at(tmp_path, monkeypatch, capsys):
    class OtherPackagesError(Exception):
        pass

    class FakeApi:
        def create_repo(self, repo, **options):
            raise OtherPackagesError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["push", str(tmp_path), "somebody/cells"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} was not uploaded to somebody/cells (OtherPackagesError: Name or service not known)" in said
    assert "`hf auth login` asks for a token" in said
    assert "did not foresee" not in said
    monkeypatch.undo()
    assert main(["push", str(tmp_path), "../cells"]) == 2
    assert "error: Repo id must use alphanumeric chars" in capsys.readouterr().err


def test_push_names_the_base_model_and_not_where_it_lies_here(tmp_path, monkeypatch, capsys):
    uploaded = {}

    class FakeApi:
        def create_repo(self, repo, **options):
            pass

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            uploaded.update(json.loads((folder_path / "adapter_config.json").read_text()))

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    config = {"peft_type": "LORA", "base_model_name_or_path": "/home/me/models/sam-mine"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert main(["push", str(tmp_path), "somebody/cells"]) == 0
    assert uploaded == {**config, "base_model_name_or_path": "sam-mine"}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
    assert "named 'sam-mine' there and not '/home/me/models/sam-mine', a path of this" in capsys.readouterr().out


def test_predict_names_bad_images_and_replaces_what_is_not_its_own_only_when_asked(
    capsys, tiny_sam_folder, toy_coco, tmp_path
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    shutil.copy(toy_coco / "val" / "val-000.png", photos)
    (photos / "bad.png").write_bytes(b"no picture")
    words = ("predict", tiny_sam_folder, photos, "--grid", 2, "--output", out)
    with pytest.warns(UserWarning, match="left out"):
        status, said, _ = run(capsys, *words)
    assert status == 1
    assert "1 image segmented" in said
    assert "1 image left out:\n" in said
    assert "bad.png is not an image" in said
    assert "reached SAM's own thresholds" in said
    (photos / "bad.png").unlink()
    label = out / "masks" / "val-000.png"
    label.write_bytes(b"corrected by hand")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "1 file that this command did not write, or that changed since" in err
    assert label.read_bytes() == b"corrected by hand"
    status, said, _ = run(capsys, *words, "--overwrite", "--pred_iou_thresh", 0, "--stability_score_thresh", 0)
    assert (status, "left out" in said) == (0, False)
    assert "3 files that were there have been replaced" in said
    status, said, _ = run(capsys, *words, "--pred_iou_thresh", 9)
    assert "val-000.png: nothing was found. A finer --grid" in said
    assert label.read_bytes() != b"corrected by hand"
