import json
from collections import defaultdict

import numpy as np
import pytest

from samparser.cli import main
from samparser.data import DataSettings, open_dataset
from samparser.prediction import predict
from samparser.scoring.table import ScoreTable
from samparser.training import EvalSettings, evaluate
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
