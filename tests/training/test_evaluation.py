import json
from collections import defaultdict

import numpy as np
import pytest

from samparser.cli import main
from samparser.data import DataSettings, open_dataset
from samparser.methods import build
from samparser.prediction import predict
from samparser.prompts import PromptSettings
from samparser.scoring import ScoreTable
from samparser.training import EvalSettings, TrainSettings, evaluate, evaluate_baselines, train
from samparser.training.evaluation import prompts_for
from samparser.training.report import add_scores_to_card
from tests.conftest import make_tiny_sam
from tests.data.readers.test_nifti import flare


def test_scores_equal_masks_compared_one_by_one(tiny_sam, tiny_processor, toy_sets):
    dataset = toy_sets[1]
    table = evaluate(tiny_sam, tiny_processor, dataset, progress=False)
    assert len(table) == 18
    per_image = []
    for sample in (dataset[i] for i in range(len(dataset))):
        ious = []
        for box, truth in zip(sample.boxes, sample.masks, strict=True):
            mask = predict(tiny_sam, tiny_processor, sample.image, boxes=[box])[0]
            ious.append((mask & truth).sum() / (mask | truth).sum())
        per_image.append(np.mean(ious))
    assert table.miou == pytest.approx(np.mean(per_image), abs=1e-3)


def test_the_parts_of_several_processes_join_to_exactly_the_table_of_one(tiny_sam, tiny_processor, toy_sets):
    whole = evaluate(tiny_sam, tiny_processor, toy_sets[1], progress=False)
    parts = [evaluate(tiny_sam, tiny_processor, toy_sets[1], process=(rank, 4), progress=False) for rank in range(4)]
    assert [len(part) for part in parts] == [6, 6, 3, 3]
    assert parts[0].merge(*parts[1:]) == whole
    assert ScoreTable([row for part in reversed(parts) for row in part.rows], whole.classes) == whole


def test_jittered_boxes_give_other_scores_and_the_same_seed_gives_the_same(tiny_sam, tiny_processor, toy_sets):
    tight, first, second, other = (
        evaluate(tiny_sam, tiny_processor, toy_sets[1], settings, progress=False)
        for settings in (
            EvalSettings(),
            EvalSettings(eval_jitter=8, eval_seed=1),
            EvalSettings(eval_jitter=8, eval_seed=1),
            EvalSettings(eval_jitter=8, eval_seed=2),
        )
    )
    assert first == second
    assert len({table.miou for table in (tight, first, other)}) == 3


def test_points_are_scored_as_predicted_with_them_and_the_table_says_so(tiny_sam, tiny_processor, toy_sets, tmp_path):
    dataset, settings = toy_sets[1], EvalSettings(eval_prompt="point", eval_points=2, eval_seed=3)
    table = evaluate(tiny_sam, tiny_processor, dataset, settings, progress=False)
    ious = []
    for index in range(len(dataset)):
        sample = dataset[index]
        points = prompts_for(sample, index, settings)["points"]
        assert points.shape == (3, 2, 2)
        masks = predict(tiny_sam, tiny_processor, sample.image, points=points)
        ious.append(np.mean([(m & t).sum() / (m | t).sum() for m, t in zip(masks, sample.masks, strict=True)]))
    assert table.miou == pytest.approx(np.mean(ious), abs=1e-3)
    assert table != evaluate(tiny_sam, tiny_processor, dataset, progress=False)
    table.to_json(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["definitions"]["prompt"] == (
        "For each instance 2 points: the one furthest from the mask's border and 1 random one (seed 3)."
    )


def test_the_kind_of_prompt_is_that_of_training_unless_another_is_named():
    points = PromptSettings(prompt="point", points=4, point_choice="random")
    same = EvalSettings().resolved(points)
    assert (same.eval_prompt, same.eval_points, same.eval_point_choice) == ("point", 4, "random")
    assert EvalSettings(eval_points=1).resolved(points).eval_points == 1
    assert EvalSettings(eval_prompt="box").resolved(points).eval_prompt == "box"
    assert EvalSettings().resolved(PromptSettings(prompt="box,point")).eval_prompt == "box"
    assert EvalSettings().resolved(PromptSettings()).eval_prompt == EvalSettings().resolved().eval_prompt == "box"
    assert EvalSettings(eval_prompt="point").resolved().eval_points == 1
    # 20 px of jitter in training do not make the boxes of the scores move.
    assert EvalSettings().resolved(PromptSettings()).prompt_settings().jitter_max == 0
    with pytest.raises(ValueError, match=r"eval_jitter is 3, which moves the sides of boxes, but .* points"):
        EvalSettings(eval_jitter=3).resolved(points)
    with pytest.raises(ValueError, match=r"eval_points is 2 .* prompted with boxes. Give eval_prompt point"):
        EvalSettings(eval_points=2).resolved()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_batch": 0}, "eval_batch is 0; it must be at least 1"),
        ({"eval_points": 0}, "eval_points is 0; it must be at least 1"),
        ({"eval_jitter": -1}, "eval_jitter is -1; it must not be negative"),
        ({"eval_prompt": "mask"}, "eval_prompt is 'mask'; known are same, box, point"),
        ({"eval_point_choice": "all"}, "eval_point_choice is 'all'; known are same, inside, random"),
        ({"eval_precision": "int8"}, "eval_precision is 'int8'; known are fp32, bf16, fp16"),
        ({"eval_prompt": "point", "eval_jitter": 3}, "eval_jitter is 3"),
        ({"eval_prompt": "box", "eval_points": 3}, "eval_points is 3"),
    ],
)
def test_evaluation_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalSettings(**settings)


def test_baselines_need_boxes(toy_sets):
    tables = evaluate_baselines(toy_sets[1], EvalSettings(eval_jitter=2), limit=1)
    assert tables["box"].prompt == "The box of each instance, each side moved outwards by 0 to 2 px (seed 0)."
    with pytest.raises(ValueError, match="eval_prompt is 'point'; give eval_prompt box"):
        evaluate_baselines(toy_sets[1], EvalSettings(eval_prompt="point"))


def test_a_run_trained_with_points_is_scored_with_points(tiny_processor, toy_sets, tmp_path):
    model = build("samparser", make_tiny_sam())
    run = train(
        model,
        tiny_processor,
        *toy_sets,
        TrainSettings(output_dir=str(tmp_path / "run"), max_steps=1, report_to="none"),
        prompts=PromptSettings(prompt="point", points=2),
    )
    scoring = EvalSettings(eval_prompt="point", eval_points=2)
    assert run.scores == evaluate(model, tiny_processor, toy_sets[1], scoring, progress=False)
    assert run.before == evaluate(make_tiny_sam(), tiny_processor, toy_sets[1], scoring, progress=False)
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert written["definitions"]["prompt"].startswith("For each instance 2 points: ")
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["evaluation"]["eval_prompt"] == "point"


def test_the_command_scores_with_points_where_they_are_asked_for(tiny_sam_folder, toy_sets, tmp_path, capsys):
    words = ["evaluate", str(tiny_sam_folder), "--data", str(toy_sets[1].root), "--output", str(tmp_path / "scores")]
    assert main([*words, "--eval_prompt", "point", "--limit_images", "1"]) == 0
    sentence = "For each instance 1 point: the one furthest from the mask's border."
    assert f"prompt: {sentence}" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["definitions"]["prompt"] == sentence
    assert main([*words, "--eval_points", "3"]) == 2
    assert "Give eval_prompt point" in capsys.readouterr().err


def test_ct_volumes_are_scored_by_the_dice_of_whole_organs(tiny_sam_folder, tiny_processor, tmp_path, capsys):
    pytest.importorskip("nibabel", reason="the medical extra is not installed")
    data = flare(tmp_path / "ct", cases=("0001", "0002"))
    words = ["evaluate", str(tiny_sam_folder), "--data", str(data), "--split", "all", "--min_area", "5"]
    assert main([*words, "--output", str(tmp_path / "scores")]) == 0
    dataset, model = open_dataset(DataSettings(data=str(data), min_area=5), "all"), make_tiny_sam()
    stacks = defaultdict(lambda: ([], []))
    for sample in dataset:
        masks = predict(model, tiny_processor, sample.image, boxes=sample.boxes)
        for instance, truth, mask in zip(sample.instances, sample.masks, masks, strict=True):
            truths, predicted = stacks[sample.volume, instance.class_id]
            truths.append(truth)
            predicted.append(mask)
    dice = {}
    for (volume, _), (truths, predicted) in stacks.items():
        truth, found = np.stack(truths), np.stack(predicted)
        dice.setdefault(volume, []).append(2 * (truth & found).sum() / (truth.sum() + found.sum()))
    expected = np.mean([np.mean(organs) for organs in dice.values()])
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["scores"]["volume_dsc"]["volumes"] == len(dice) == 2
    assert scores["scores"]["volume_dsc"]["dsc"] == pytest.approx(expected, abs=1e-3)
    assert "over the pixels of all scored slices of a volume" in scores["definitions"]["volume_dsc"]
    printed = capsys.readouterr().out
    assert "volume DSC" in printed
    assert "left kidney" in printed


def test_the_model_is_left_in_the_mode_it_was_in(tiny_sam, tiny_processor, toy_sets):
    tiny_sam.train()
    evaluate(tiny_sam, tiny_processor, toy_sets[1], limit=1, progress=False)
    assert tiny_sam.training


def test_scores_in_a_model_card_replace_the_earlier_ones_and_keep_other_text(
    tiny_sam, tiny_processor, toy_sets, tmp_path
):
    card = tmp_path / "README.md"
    card.write_text("# My adapter\n\nMine.\n")
    first = evaluate(tiny_sam, tiny_processor, toy_sets[1], limit=1, progress=False)
    second = evaluate(tiny_sam, tiny_processor, toy_sets[1], limit=2, progress=False)
    add_scores_to_card(card, first, toy_sets[1])
    once = card.read_text()
    card.write_text(once + "\nMore of mine.\n")
    add_scores_to_card(card, second, toy_sets[1])
    text = card.read_text()
    assert text.startswith("# My adapter\n\nMine.\n")
    assert text.endswith("\nMore of mine.\n")
    assert text.count("### Scores") == 1
    assert str(second) in text
    assert str(first) not in text
