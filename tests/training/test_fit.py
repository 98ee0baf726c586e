import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerCallback

from samparser import SVDCoefficientConfig
from samparser.data import DataSettings, open_dataset
from samparser.prediction import predict_files
from samparser.scoring.table import InstanceScore, ScoreTable
from samparser.training import (
    OutOfMemoryError,
    RunFolder,
    RunFolderError,
    SamTrainer,
    Stopped,
    TrainSettings,
    evaluate,
    train,
    verdict,
)
from samparser.training.leakage import shared_image

from ..conftest import make_tiny_sam, write_toy_coco
from .conftest import adapter_tensors


def settings_in(folder, **fields):
    return TrainSettings(output_dir=str(folder / "run"), **fields)


def test_training_changes_coefficients_and_decoder_and_nothing_else(run_tiny):
    before = make_tiny_sam().state_dict()
    result, model = run_tiny(num_train_epochs=2)
    assert result.steps == 12
    after = {name: tensor for name, tensor in model.get_base_model().state_dict().items() if "svd_" not in name}
    unchanged = {name for name in before if name in after and torch.equal(before[name], after[name])}
    encoder_and_prompts = {name for name in before if not name.startswith("mask_decoder.")}
    # The neck's convs keep their weight under another name; it is compared there.
    assert {name for name in encoder_and_prompts if name in after} <= unchanged
    for name, module in model.named_modules():
        if name.endswith(("neck.conv1", "neck.conv2")):
            original = before[name.removeprefix("base_model.model.") + ".weight"]
            assert torch.equal(module.get_base_layer().weight, original)
    tensors = adapter_tensors(result)
    changed = [name for name, tensor in tensors.items() if "svd_coefficient" in name and tensor.ndim == 1]
    assert len(changed) >= 2


def test_a_run_folder_holds_everything_that_the_docs_name(run_tiny):
    result, _ = run_tiny(with_eval=True, num_train_epochs=1, report_to="tensorboard")
    names = {path.name for path in result.folder.path.iterdir()}
    assert names == {
        "settings.json",
        "environment.json",
        "log.jsonl",
        "checkpoints",
        "adapter",
        "scores.json",
        "scores.csv",
        "scores_before.csv",
        "scores_before.json",
        "finished.json",
        "figures",
        "tensorboard",
    }
    rows = list(result.folder.rows())
    losses = [row for row in rows if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert {"ce", "focal", "dice", "learning_rate", "epoch"} <= losses[0].keys()
    for row in losses:
        assert row["loss"] == pytest.approx(0.5 * row["ce"] + 0.5 * row["focal"] + row["dice"], rel=1e-4)
    assert sum("eval_miou" in row for row in rows) == 1
    assert rows[0] == {
        "step": 0,
        "before_miou": result.before.miou,
        "before_f1": result.before.f1,
        "epoch": 0,
    }
    scores = json.loads((result.folder.path / "scores.json").read_text())
    assert result.scores.miou == pytest.approx(rows[-1].get("final_miou", rows[-1].get("eval_miou")))
    assert scores
    figures = {path.name: path.stat().st_size for path in result.folder.figures.iterdir()}
    assert figures.keys() == {"curves.png", "spectra.png", "best-median-worst.png"}
    assert min(figures.values()) > 5000
    card = (result.folder.adapter / "README.md").read_text()
    assert "import samparser" in card
    assert f"{100 * result.scores.miou:.2f}" in card
    assert f"before tuning{100 * result.before.miou:>17.2f}" in card
    assert "Trained on 6 images of `toy-coco` (layout coco, split train, classes cell, blob)." in card
    assert "Scored on 6 images of `toy-coco` (layout coco, split val, classes cell, blob)." in card
    assert "best miou on these same images was kept" in card
    assert "instance-image mean" in card


def test_a_run_stopped_after_two_epochs_and_resumed_equals_an_uninterrupted_one(run_tiny, monkeypatch):
    whole, _ = run_tiny("whole", num_train_epochs=4, logging_steps=5)

    class Power(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 15:
                raise KeyboardInterrupt

    original = SamTrainer.__init__

    def with_power_cut(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Power())

    monkeypatch.setattr(SamTrainer, "__init__", with_power_cut)
    with pytest.raises(KeyboardInterrupt):
        run_tiny("cut", num_train_epochs=4, logging_steps=5)
    monkeypatch.setattr(SamTrainer, "__init__", original)
    resumed, _ = run_tiny("cut", num_train_epochs=4, logging_steps=5, resume=True)

    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert expected.keys() == got.keys()
    for name in expected:
        assert torch.equal(expected[name], got[name]), name
    assert list(whole.folder.rows()) == list(resumed.folder.rows())


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(run_tiny):
    whole, _ = run_tiny("whole", max_steps=16, eval_strategy="steps", eval_steps=4)
    cut = RunFolder(whole.folder.path.parent / "cut")
    run_tiny("cut", max_steps=16, eval_strategy="steps", eval_steps=4)
    # As if the power had gone just after step 9, with the checkpoint of step 8 (in the second epoch of 6) written.
    for step in (12, 16):
        shutil.rmtree(cut.checkpoints / f"checkpoint-{step}", ignore_errors=True)
    assert cut.last_checkpoint() is None
    for name in ("finished.json", "adapter", "figures"):
        path = cut.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_tiny("early", max_steps=8, eval_strategy="steps", eval_steps=4)
    early = RunFolder(whole.folder.path.parent / "early")
    shutil.copytree(early.checkpoints / "checkpoint-8", cut.checkpoints / "checkpoint-8")
    resumed, _ = run_tiny("cut", max_steps=16, eval_strategy="steps", eval_steps=4, resume=True)
    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert list(whole.folder.rows()) == list(resumed.folder.rows())


@pytest.mark.parametrize(
    "fields",
    [
        {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 4},
        {"max_steps": 9, "eval_strategy": "steps", "eval_steps": 4},
        {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 4, "eval_limit": 2},
        {"max_steps": 4, "eval_strategy": "no"},
        {"num_train_epochs": 2},
        {"num_train_epochs": 20, "early_stopping_patience": 1, "learning_rate": 1e-12, "coefficient_lr": 1e-12},
    ],
    ids=["steps", "last step unsaved", "limited", "never scored", "epochs", "stopped early"],
)
def test_a_run_killed_after_its_last_step_ends_as_an_uninterrupted_one(run_tiny, fields, monkeypatch):
    whole, _ = run_tiny("whole", with_eval=True, **fields)
    monkeypatch.setattr("samparser.training.fit.write_results", None)
    with pytest.raises(TypeError):
        run_tiny("cut", with_eval=True, **fields)
    monkeypatch.undo()
    resumed, _ = run_tiny("cut", with_eval=True, resume=True, **fields)
    assert resumed.steps == whole.steps
    assert resumed.scores == whole.scores
    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.folder.rows() == whole.folder.rows()


def test_resuming_with_other_settings_is_refused_and_named(run_tiny):
    run_tiny(num_train_epochs=1)
    with pytest.raises(RunFolderError, match=r"train.seed: 0 there, 7 now"):
        run_tiny(num_train_epochs=1, seed=7, resume=True)


def test_the_score_before_tuning_is_that_of_the_base_model(run_tiny, tiny_processor, toy_sets):
    result, _ = run_tiny(with_eval=True, max_steps=1, eval_strategy="no", eval_limit=2)
    assert result.before == evaluate(make_tiny_sam(), tiny_processor, toy_sets[1], progress=False)
    assert result.before != result.scores
    resumed, _ = run_tiny(with_eval=True, max_steps=1, eval_strategy="no", eval_limit=2, resume=True)
    assert resumed.before == result.before
    without, _ = run_tiny("other", with_eval=True, max_steps=1, eval_strategy="no", score_before=False)
    assert without.before is None
    assert not without.folder.scores_before.exists()


def test_a_run_that_made_the_masks_worse_says_so():
    def table(intersection):
        return ScoreTable([InstanceScore("a", "1", class_id=1, area=10, predicted_area=10, intersection=intersection)])

    worse, better = verdict(table(8), table(5)), verdict(table(5), table(8))
    assert "difference              -33.33  -30.00" in worse
    assert "Tuning made the masks worse. The usual reasons: a learning rate that is too high" in worse
    assert "difference              +33.33  +30.00" in better
    assert "worse" not in better


def test_a_logger_that_is_unknown_or_missing_is_named_before_anything_is_written(run_tiny, tmp_path):
    with pytest.raises(ValueError, match=r"report_to is nonsense: .*tensorboard.* give none"):
        run_tiny(report_to="nonsense")
    with pytest.raises(ValueError, match=r"report_to is wandb: .*pip install wandb"):
        run_tiny(report_to="wandb")
    assert not (tmp_path / "run").exists()


def test_the_log_has_both_learning_rates(run_tiny):
    result, _ = run_tiny(max_steps=1)
    (row,) = result.folder.rows()
    assert (row["learning_rate"], row["coefficient_lr"]) == (1e-3, 1e-2)


def test_the_best_checkpoint_is_what_is_saved(run_tiny):
    result, _ = run_tiny(with_eval=True, num_train_epochs=3, learning_rate=5e-2, coefficient_lr=5e-2)
    rows = [row for row in result.folder.rows() if "eval_miou" in row]
    assert len(rows) == 3
    assert result.scores.miou == pytest.approx(max(row["eval_miou"] for row in rows))


def test_the_best_checkpoint_is_saved_of_an_adapter_with_a_name_too(run_tiny):
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
    model = get_peft_model(make_tiny_sam(), config, adapter_name="cells")
    fields = {"num_train_epochs": 3, "learning_rate": 1e-3, "coefficient_lr": 1e-2, "with_eval": True}
    result, _ = run_tiny(model=model, **fields)
    rows = [row["eval_miou"] for row in result.folder.rows() if "eval_miou" in row]
    assert rows[-1] < max(rows), "the last evaluation must not be the best for this test to say anything"
    assert result.scores.miou == pytest.approx(max(rows))


def test_training_stops_early_when_the_score_does_not_rise(run_tiny):
    result, _ = run_tiny(
        with_eval=True, num_train_epochs=20, learning_rate=1e-12, coefficient_lr=1e-12, early_stopping_patience=2
    )
    assert result.steps == 18


def test_a_resumed_run_goes_on_counting_evaluations_without_a_better_score(run_tiny, monkeypatch):
    fields = {"num_train_epochs": 20, "early_stopping_patience": 2, "learning_rate": 1e-12, "coefficient_lr": 1e-12}
    whole, _ = run_tiny("whole", with_eval=True, **fields)
    original = SamTrainer.training_step

    def power_cut(self, *args, **kwargs):
        if self.state.global_step == 13:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SamTrainer, "training_step", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run_tiny("cut", with_eval=True, **fields)
    monkeypatch.setattr(SamTrainer, "training_step", original)
    resumed, _ = run_tiny("cut", with_eval=True, resume=True, **fields)
    assert resumed.steps == whole.steps == 18
    assert resumed.folder.rows() == whole.folder.rows()


def test_stopping_early_without_validation_images_is_refused(run_tiny):
    with pytest.raises(ValueError, match="early_stopping_patience is 2, but there are no validation images"):
        run_tiny(early_stopping_patience=2)


def test_a_run_without_a_folder_is_refused(tiny_sam, tiny_processor, toy_sets):
    with pytest.raises(ValueError, match="output_dir is not given; name the folder"):
        train(tiny_sam, tiny_processor, toy_sets[0], None, TrainSettings())


def test_the_last_weights_are_kept_and_scored_where_the_best_are_not_asked_for(run_tiny, tiny_processor, toy_sets):
    rates = {"learning_rate": 5e-2, "coefficient_lr": 5e-2}
    result, model = run_tiny(with_eval=True, num_train_epochs=3, load_best_model_at_end=False, **rates)
    last = [row["eval_miou"] for row in result.folder.rows() if "eval_miou" in row][-1]
    assert result.scores.miou == last == evaluate(model, tiny_processor, toy_sets[1], progress=False).miou


def test_loggers_and_their_steps_may_differ_when_a_run_goes_on(run_tiny):
    run_tiny(max_steps=2)
    result, _ = run_tiny(max_steps=2, logging_steps=5, report_to="tensorboard", resume=True)
    assert result.steps == 2


def test_the_finished_adapter_is_uploaded_once_where_it_was_asked_for(run_tiny, monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, name, **options):
            calls.append((name, options["private"]))
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("samparser.training.hub.HfApi", Hub)
    fields = {"push_to_hub": True, "hub_model_id": "me/cells", "hub_token": "secret", "hub_private_repo": True}
    result, _ = run_tiny(max_steps=2, **fields)
    assert calls[:2] == ["secret", ("me/cells", True)]
    assert calls[2:] == [("me/cells", sorted(path.name for path in result.folder.adapter.iterdir()))]
    assert "secret" not in result.folder.settings.read_text()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_as_an_uninterrupted_one(run_tiny, monkeypatch):
    fields = {"num_train_epochs": 3, "with_eval": True}
    whole, _ = run_tiny("whole", **fields)
    monkeypatch.setattr("samparser.training.fit.write_results", None)
    with pytest.raises(TypeError):
        run_tiny("cut", **fields)
    monkeypatch.undo()
    cut = RunFolder(whole.folder.path.parent / "cut")
    newest = cut.last_checkpoint()
    (newest / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: optimizer.pt is missing"):
        resumed, _ = run_tiny("cut", resume=True, **fields)
    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.folder.rows() == whole.folder.rows()


def test_a_run_whose_folder_was_moved_goes_on_with_its_best_checkpoint(run_tiny, monkeypatch):
    fields = {"num_train_epochs": 4, "with_eval": True, "learning_rate": 5e-2, "coefficient_lr": 5e-2}
    whole, _ = run_tiny("whole", **fields)
    original = SamTrainer.training_step

    def power_cut(self, *args, **kwargs):
        if self.state.global_step == 20:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SamTrainer, "training_step", power_cut)
    with pytest.raises(Stopped, match=r"Training was stopped \(SIGINT\)\. The same command with --resume goes on"):
        run_tiny("cut", **fields)
    monkeypatch.undo()
    (whole.folder.path.parent / "cut").rename(whole.folder.path.parent / "moved")
    resumed, _ = run_tiny("moved", resume=True, **fields)
    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert resumed.scores == whole.scores


def test_a_damaged_table_of_the_scores_before_is_named_before_the_run_goes_on(run_tiny):
    result, _ = run_tiny(with_eval=True, max_steps=2)
    result.folder.scores_before.write_text("image,instance\n")
    with pytest.raises(RunFolderError, match=r"scores_before\.csv is damaged .*Delete it to go on without"):
        run_tiny(with_eval=True, max_steps=2, resume=True)


def test_a_damaged_account_of_the_scores_before_is_named_too_and_a_missing_one_is_none(run_tiny):
    result, _ = run_tiny(with_eval=True, max_steps=2)
    about = result.folder.scores_before.with_suffix(".json")
    assert result.before.prompt == "The tight box of each instance."
    about.write_text("[1]")
    with pytest.raises(RunFolderError, match=r"scores_before\.json is damaged .*Delete it to go on without"):
        run_tiny(with_eval=True, max_steps=2, resume=True)
    about.unlink()
    again, _ = run_tiny(with_eval=True, max_steps=2, resume=True)
    assert again.before == result.before


def test_the_cache_the_data_and_the_model_are_never_inside_what_is_overwritten(run_tiny, toy_coco, tmp_path):
    run_tiny(max_steps=1)
    cache = str(tmp_path / "run" / "features")
    Path(cache).mkdir()
    with pytest.raises(RunFolderError, match=rf"The cache, {cache}, lies inside"):
        run_tiny(max_steps=1, overwrite=True, cache=cache)
    assert (tmp_path / "run" / "finished.json").is_file()


def test_a_frozen_model_is_refused(toy_sets, tiny_processor, tmp_path):
    model = make_tiny_sam().requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing in this model requires a gradient"):
        train(model, tiny_processor, toy_sets[0], None, settings_in(tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_empty_set_is_refused(tiny_sam, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match="training set is empty"):
        train(tiny_sam, tiny_processor, [], None, settings_in(tmp_path))


def test_an_image_in_both_sets_is_named(toy_sets, tiny_processor, tmp_path):
    model = make_tiny_sam()
    same = toy_sets[0].subset([4, 5])
    with pytest.raises(ValueError, match=r"train-004.png is in both the training and the validation set"):
        train(model, tiny_processor, toy_sets[0], same, settings_in(tmp_path))


def test_one_file_under_two_names_in_both_sets_is_refused_unless_allowed(tiny_processor, tmp_path):
    root = write_toy_coco(tmp_path / "data", images=2)
    (root / "val" / "val-001.png").write_bytes((root / "train" / "train-000.png").read_bytes())
    sets = [open_dataset(DataSettings(data=str(root)), split) for split in ("train", "val")]
    said = (
        r"train/train-000\.png and val/val-001\.png are the same file, which is in both the training and the validation"
    )
    with pytest.raises(ValueError, match=said):
        train(make_tiny_sam(), tiny_processor, *sets, settings_in(tmp_path))
    assert not (tmp_path / "run").exists()
    settings = settings_in(tmp_path, max_steps=1, report_to="none", allow_shared=True, score_before=False)
    with pytest.warns(UserWarning, match=said):
        train(make_tiny_sam(), tiny_processor, *sets, settings)


def test_files_of_one_size_with_other_content_are_no_twins(toy_sets, tmp_path):
    for name, middle in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        for index in range(3):
            (tmp_path / name / f"{name}{index}.tif").write_bytes(bytes(6000) + middle + bytes(6000) + bytes([index]))
    a, b = (
        SimpleNamespace(root=tmp_path, names=[f"{name}/{name}{index}.tif" for index in range(3)]) for name in ("a", "b")
    )
    assert shared_image(a, b) is None
    (tmp_path / "b" / "b2.tif").write_bytes((tmp_path / "a" / "a1.tif").read_bytes())
    assert shared_image(a, b) == ("a/a1.tif", "b/b2.tif")


def test_gradient_checkpointing_is_refused_where_it_saves_nothing(run_tiny):
    with pytest.raises(ValueError, match="gradient_checkpointing saves nothing here"):
        run_tiny(gradient_checkpointing=True)


def test_gradient_checkpointing_gives_the_same_weights_where_the_encoder_trains(run_tiny):
    results = []
    for checkpointing in (False, True):
        model = make_tiny_sam()
        run_tiny(f"run-{checkpointing}", model=model, max_steps=2, gradient_checkpointing=checkpointing)
        results.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-5)


def test_out_of_memory_names_the_settings_that_help(run_tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SamTrainer, "compute_loss", full)
    with pytest.raises(OutOfMemoryError, match=r"--max_instances.*--bf16.*--cache DIR.*--gradient_checkpointing"):
        run_tiny(max_steps=1)


def test_out_of_memory_while_scoring_or_predicting_names_the_settings_that_help(
    tiny_sam, tiny_processor, toy_sets, toy_coco, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(tiny_sam.mask_decoder), "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"--eval_batch 4.*--eval_precision bf16.*--device cpu"):
        evaluate(tiny_sam, tiny_processor, toy_sets[1], limit=1, progress=False)
    with pytest.raises(OutOfMemoryError, match=r"--batch 8.*--grid.*--device cpu"):
        predict_files(tiny_sam, tiny_processor, [toy_coco / "val"], tmp_path / "out", grid=2, progress=False)


def test_accumulating_two_batches_equals_one_batch_of_two_images(run_tiny):
    together, _ = run_tiny("together", per_device_train_batch_size=2, max_steps=3)
    accumulated, _ = run_tiny("accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=3)
    expected, got = adapter_tensors(together), adapter_tensors(accumulated)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_float16_is_refused_on_a_cpu_and_not_ignored(run_tiny, tmp_path):
    with pytest.raises(ValueError, match=r"fp16 needs a GPU; on a CPU train in fp32 .* or with bf16"):
        run_tiny(max_steps=1, fp16=True, use_cpu=True)
    assert not (tmp_path / "run").exists()


def test_a_model_in_half_precision_is_refused_with_the_way_out(run_tiny, tiny_processor, toy_sets, tmp_path):
    model = get_peft_model(make_tiny_sam().half(), SVDCoefficientConfig(target_modules=["neck"]))
    settings = TrainSettings(output_dir=str(tmp_path / "run"), max_steps=1, report_to="none")
    with pytest.raises(ValueError, match=r"weights in float16, .* are lost\. .*model\.float\(\)"):
        train(model, tiny_processor, *toy_sets, settings)
    assert not (tmp_path / "run").exists()


def test_bfloat16_autocast_trains_and_stays_close(run_tiny):
    exact, _ = run_tiny("fp32", max_steps=2)
    half, _ = run_tiny("bf16", max_steps=2, bf16=True)
    first = [next(row["loss"] for row in result.folder.rows() if "loss" in row) for result in (exact, half)]
    assert first[1] == pytest.approx(first[0], rel=0.03)
    assert first[1] != first[0]


def test_the_recipe_that_was_used_is_written_down(run_tiny):
    result, _ = run_tiny(max_steps=1, recipe="medical")
    settings = json.loads(result.folder.settings.read_text())
    assert settings["train"]["weight_decay"] == 5e-4
    assert settings["train"]["lambda_focal"] == 0.0
    assert settings["prompts"]["max_instances"] == 2
