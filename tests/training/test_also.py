import json
import math
from statistics import fmean, stdev

import pytest
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.cli import main
from samparser.data import DataSettings, open_dataset
from samparser.features.cache import FeatureCache
from samparser.methods import build
from samparser.sam import default_processor
from samparser.scoring.table import InstanceScore, ScoreTable
from samparser.training import (
    AlsoSettings,
    EvalSettings,
    Forgetting,
    RunFolderError,
    SamTrainer,
    Stopped,
    TrainSettings,
    evaluate,
    train,
)
from samparser.training.also import forgetting_of, tight

from ..conftest import make_tiny_sam, write_toy_coco
from ..sam.tiny import make_tiny
from .conftest import PROMPTS, adapter_tensors


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    """Another data set, which shares names but no image with the toy's."""
    return write_toy_coco(tmp_path_factory.mktemp("other") / "base-set", images=4, seed=5)


@pytest.fixture(scope="module")
def other(other_folder):
    """Three of its validation images."""
    return open_dataset(DataSettings(data=str(other_folder)), "val").subset([0, 1, 3])


@pytest.fixture
def run_also(toy_sets, tiny_processor, tmp_path, other):
    """Trains a tiny SAM's coefficients and decoder, and scores another set too; returns result and model."""

    def run(output="run", *, also=other, with_eval=False, resume=False, overwrite=False, scoring=None, **settings):
        config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
        model = get_peft_model(make_tiny_sam(), config)
        given = {"learning_rate": 1e-3, "coefficient_lr": 1e-2, "num_train_epochs": 1, "report_to": "none"}
        result = train(
            model,
            tiny_processor,
            toy_sets[0],
            toy_sets[1] if with_eval else None,
            TrainSettings(output_dir=str(tmp_path / output), **{**given, **settings}),
            prompts=PROMPTS,
            eval_settings=scoring,
            also=also,
            resume=resume,
            overwrite=overwrite,
        )
        return result, model

    return run


def table(**intersections):
    """Scores of one instance an image: 10 pixels each in truth and in prediction."""
    return ScoreTable(
        InstanceScore(image, "0", class_id=1, area=10, predicted_area=10, intersection=shared)
        for image, shared in intersections.items()
    )


def test_the_points_lost_are_those_of_a_computation_by_hand():
    # IoU of 10 and 10 pixels that share n: n / (20 - n).
    lost = Forgetting("base (val)", table(a=10, b=8, c=5), table(a=8, b=8, c=4))
    by_hand = [100 * (1 - 8 / 12), 0.0, 100 * (5 / 15 - 4 / 16)]
    assert list(lost.differences.values()) == pytest.approx(by_hand)
    assert lost.lost == pytest.approx(fmean(by_hand)) == pytest.approx(13.888889)
    assert lost.error == pytest.approx(stdev(by_hand) / math.sqrt(3)) == pytest.approx(10.015420)
    assert str(lost) == (
        "Forgetting: on base (val), 13.89 ± 10.02 points of mIoU lost (66.67 % before tuning, 52.78 % after; tight "
        "boxes, 3 images, paired)."
    )
    gained = Forgetting("base (val)", table(a=8), table(a=10))
    assert "33.33 points of mIoU gained" in str(gained)
    assert gained.error is None
    assert gained.to_json() | {"definition": ""} == {
        "data": "base (val)",
        "points_lost": pytest.approx(-100 / 3),
        "standard_error": None,
        "images": 1,
        "before": {"miou": pytest.approx(2 / 3), "f1": 0.8},
        "after": {"miou": 1.0, "f1": 1.0},
        "definition": "",
    }


def test_scores_of_different_instances_are_no_pair():
    with pytest.raises(ValueError, match="of 2 and 1 instances, 1 of which are the same: base has changed"):
        Forgetting("base", table(a=1, b=2), table(a=1))


def test_a_run_scores_the_other_set_with_tight_boxes_before_and_after(run_also, tiny_processor, other, toy_sets):
    # The run trains and is scored with loose boxes; the other set is not.
    scoring = EvalSettings(eval_jitter=10, eval_batch=2)
    result, model = run_also(with_eval=True, scoring=scoring)
    before = evaluate(make_tiny_sam(), tiny_processor, other, progress=False)
    after = evaluate(model, tiny_processor, other, EvalSettings(), progress=False)
    assert result.forgetting.before == before
    assert result.also == result.forgetting.after == after
    assert before != after
    assert result.scores == evaluate(model, tiny_processor, toy_sets[1], scoring, progress=False)
    folder = result.folder
    assert ScoreTable.from_csv(folder.path / "scores_also_before.csv") == before
    assert ScoreTable.from_csv(folder.path / "scores_also.csv") == after
    written = json.loads((folder.path / "forgetting.json").read_text("utf-8"))
    assert written["points_lost"] == pytest.approx(100 * (before.miou - after.miou))
    assert written["images"] == 3
    assert written["before"]["f1"] == before.f1
    card = (folder.adapter / "README.md").read_text("utf-8")
    assert f"### Forgetting\n\n{result.forgetting}" in card
    assert "on base-set (val), " in card


def test_an_untuned_model_is_scored_as_it_was_released(toy_sets, other, tmp_path):
    # SAM 2 puts another head's mask in place of an unstable one, unless that head is trained.
    base = make_tiny("sam2")
    processor = default_processor(base)
    released, trained_head = (evaluate(base, processor, other, tuned=tuned, progress=False) for tuned in (False, True))
    assert released != trained_head
    model = build("decoder", make_tiny("sam2"))
    settings = TrainSettings(output_dir=str(tmp_path / "run"), max_steps=1, learning_rate=1e-9, report_to="none")
    result = train(model, processor, toy_sets[0], None, settings, prompts=PROMPTS, also=other, figures=False)
    assert result.forgetting.before == released
    # At this rate nothing changed but the head.
    assert result.also.miou == pytest.approx(trained_head.miou, abs=1e-3)


def test_the_other_set_changes_nothing_of_the_training(run_also):
    with_it, _ = run_also("with", with_eval=True)
    without, _ = run_also("without", with_eval=True, also=None)
    assert without.also is without.forgetting is None
    assert not [path for path in without.folder.path.iterdir() if "also" in path.name or "forget" in path.name]
    tensors = adapter_tensors(without)
    assert all(bool((tensor == tensors[name]).all()) for name, tensor in adapter_tensors(with_it).items())
    assert with_it.scores == without.scores
    assert len(with_it.folder.rows()) == len(without.folder.rows())


def test_a_run_without_validation_images_says_what_it_forgot_all_the_same(run_also):
    result, _ = run_also()
    assert result.scores is None
    assert str(result.forgetting) in (result.folder.adapter / "README.md").read_text("utf-8")


def test_a_resumed_run_keeps_the_scores_of_before_and_ends_as_an_uninterrupted_one(run_also, monkeypatch):
    whole, _ = run_also("whole", num_train_epochs=2)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    scored = []
    original = SamTrainer.score

    def counted(self, *args, tuned=True, **kwargs):
        scored.append(tuned)
        return original(self, *args, tuned=tuned, **kwargs)

    monkeypatch.setattr(SamTrainer, "score", counted)
    # Killed when it was about to score the result: the last checkpoint is whole, no table of after is there.
    with monkeypatch.context() as patch:
        patch.setattr("samparser.training.fit._load_kept", killed)
        with pytest.raises((Stopped, KeyboardInterrupt)):
            run_also("stopped", num_train_epochs=2)
    folder = whole.folder.path.with_name("stopped")
    before = (folder / "scores_also_before.csv").read_bytes()
    assert not (folder / "scores_also.csv").exists()
    assert scored == [False]
    resumed, _ = run_also("stopped", num_train_epochs=2, resume=True)
    assert scored == [False, True]
    assert (folder / "scores_also_before.csv").read_bytes() == before
    for name in ("scores_also_before.csv", "scores_also.csv", "forgetting.json"):
        assert (folder / name).read_bytes() == (whole.folder.path / name).read_bytes(), name
    assert resumed.forgetting == whole.forgetting
    # Once more, when all is finished: the same again.
    again, _ = run_also("stopped", num_train_epochs=2, resume=True)
    assert again.forgetting == whole.forgetting


def test_a_run_goes_on_only_with_the_set_that_it_began_with(run_also, other):
    result, _ = run_also(max_steps=1)
    with pytest.raises(RunFolderError, match="also_images: 3 there, '\\(not set\\)' now"):
        run_also(max_steps=1, also=None, resume=True)
    with pytest.raises(RunFolderError, match="also_images: 3 there, 2 now"):
        run_also(max_steps=1, also=other.subset([0, 1]), resume=True)
    result.folder.also_before.write_text("image,instance\n")
    with pytest.raises(RunFolderError, match=r"scores_also_before\.csv is damaged .*Delete it to go on without"):
        run_also(max_steps=1, resume=True)
    result.folder.also_before.unlink()
    resumed, _ = run_also(max_steps=1, resume=True)
    assert resumed.also is not None
    assert resumed.forgetting is None
    table(x=3).to_csv(result.folder.also_before)
    with pytest.raises(RunFolderError, match=r"0 of which are the same: base-set \(val\) has changed"):
        forgetting_of(result.folder, other, resumed.also)
    fresh, _ = run_also(max_steps=1, overwrite=True, also=None)
    assert not [path for path in fresh.folder.path.iterdir() if "also" in path.name or "forget" in path.name]


def test_without_scores_before_only_those_of_after_are_made(run_also):
    result, _ = run_also(max_steps=1, score_before=False)
    assert result.forgetting is None
    assert ScoreTable.from_csv(result.folder.also_after) == result.also
    assert not result.folder.also_before.exists()
    assert not result.folder.forgetting.exists()


def test_the_other_set_is_scored_from_cached_features_too(run_also, tmp_path, monkeypatch):
    from_images, _ = run_also("images", max_steps=2)
    cache = str(tmp_path / "features")
    cached, _ = run_also("cached", max_steps=2, cache=cache, cache_dtype="fp32")
    # 6 images to train on and 3 of the other set.
    assert len(list((tmp_path / "features").glob("*/??/*.safetensors"))) == 9
    assert cached.forgetting.lost == pytest.approx(from_images.forgetting.lost, abs=1e-3)
    monkeypatch.setattr(FeatureCache, "encode_pixels", None)
    again, _ = run_also("again", max_steps=2, cache=cache, cache_dtype="fp32")
    assert again.forgetting == cached.forgetting


def test_an_image_that_is_trained_on_and_scored_for_forgetting_is_refused_unless_allowed(run_also, toy_sets):
    same = toy_sets[0].subset([4, 5])
    said = r"train-004\.png is in both the training and the other set, also, so the scores would say nothing"
    with pytest.raises(ValueError, match=said):
        run_also(also=same)
    with pytest.warns(UserWarning, match=said):
        run_also(also=same, max_steps=1, allow_shared=True)


def test_an_empty_other_set_is_refused(run_also):
    with pytest.raises(ValueError, match="other set to score, also, is empty"):
        run_also(also=[])


def test_tight_boxes_keep_batch_and_precision_and_nothing_else():
    scoring = EvalSettings(eval_prompt="point", eval_points=3, eval_batch=7, eval_precision="bf16", eval_seed=4)
    assert tight(scoring) == EvalSettings(eval_prompt="box", eval_batch=7, eval_precision="bf16")


def test_what_to_take_of_no_set_is_refused():
    assert AlsoSettings().data_settings() is None
    assert AlsoSettings(also="x", also_layout="coco", also_limit=3).data_settings() == DataSettings(
        data="x", layout="coco", limit=3
    )
    with pytest.raises(ValueError, match="give its folder, also"):
        AlsoSettings(also_split="test")
    with pytest.raises(ValueError, match="also_limit is 0; it must be at least 1"):
        AlsoSettings(also="x", also_limit=0)


def test_the_command_takes_a_folder_and_prints_one_sentence(
    capsys, tiny_sam_folder, toy_coco, other_folder, tmp_path, tiny_processor
):
    words = [
        *("train", "--model", tiny_sam_folder, "--data", toy_coco, "--output_dir", tmp_path / "run", "--max_steps", 2),
        *("--report_to", "none", "--eval_strategy", "no", "--also", other_folder, "--also-split", "val"),
    ]
    assert main([str(word) for word in words]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Forgetting", "also val"))]
    assert said[0].startswith("also val: 4 images of layout coco")
    assert said[1].startswith("Forgetting: on base-set (val), ")
    assert said[1].endswith("tight boxes, 4 images, paired).")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text("utf-8"))
    assert settings["also"] == {
        "also": str(other_folder),
        "also_layout": "auto",
        "also_split": "val",
        "also_limit": None,
    }
    dataset = open_dataset(DataSettings(data=str(other_folder)), "val")
    before = evaluate(make_tiny_sam(), tiny_processor, dataset, progress=False)
    written = json.loads((tmp_path / "run" / "forgetting.json").read_text("utf-8"))
    assert written["before"]["miou"] == pytest.approx(before.miou)
