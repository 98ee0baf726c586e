"""Scores against sets of pixels and torchmetrics; equal to the bit however the rows are spread and ordered."""

import json
import math
import random
from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samparser.data.sample import Instance, Sample
from samparser.scoring import InstanceScore, ScoreTable, score_instances
from tests.reference import metrics as reference


def random_sample(rng, name="a.png", instances=4, size=(20, 24), void=False, volume=None):
    kept = []
    for number in range(instances):
        mask = np.zeros(size, dtype=bool)
        y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        mask[y : y + 6, x : x + 6] = rng.random((6, 6)) > 0.3
        kept.append(Instance.from_mask(mask, int(rng.integers(1, 4)), str(number)))
    outside = rng.random(size) > 0.9 if void else None
    return Sample(name, np.zeros((*size, 3), np.uint8), tuple(kept), outside, volume)


def disturbed(rng, masks):
    return masks ^ (rng.random(masks.shape) > 0.9)


def random_rows(seed, images=5, volumes=False):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(images):
        volume = f"case{number % 2}" if volumes else None
        sample = random_sample(rng, f"{number}.png", int(rng.integers(1, 6)), volume=volume)
        rows += score_instances(sample, disturbed(rng, sample.masks))
    return rows


def row(image="a", instance="0", class_id=1, area=10, predicted_area=10, intersection=5, volume=None):
    return InstanceScore(image, instance, class_id, area, predicted_area, intersection, volume)


@pytest.mark.parametrize("void", [False, True], ids=["", "void"])
@pytest.mark.parametrize("seed", range(3))
def test_iou_and_f1_of_an_instance_equal_those_of_sets_of_pixels(seed, void):
    rng = np.random.default_rng(seed)
    sample = random_sample(rng, void=void)
    predicted = disturbed(rng, sample.masks)
    outside = reference.pixels(sample.void) if void else frozenset()
    for score, truth, mask in zip(score_instances(sample, predicted), sample.masks, predicted, strict=True):
        assert (score.iou, score.f1) == pytest.approx(reference.iou_and_f1(truth, mask, outside), rel=1e-15)


def test_iou_and_f1_equal_torchmetrics_on_random_masks():
    from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

    rng = np.random.default_rng(0)
    sample = random_sample(rng, instances=8)
    predicted = disturbed(rng, sample.masks)
    for score, truth, mask in zip(score_instances(sample, predicted), sample.masks, predicted, strict=True):
        p, t = torch.from_numpy(mask).int(), torch.from_numpy(truth).int()
        assert score.iou == pytest.approx(float(binary_jaccard_index(p, t)), rel=1e-6)
        assert score.f1 == pytest.approx(float(binary_f1_score(p, t)), rel=1e-6)


def test_global_pixels_equal_torchmetrics_over_all_instances_at_once():
    from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

    rng = np.random.default_rng(1)
    rows, iou, f1 = [], BinaryJaccardIndex(), BinaryF1Score()
    for number in range(3):
        sample = random_sample(rng, f"{number}.png")
        predicted = disturbed(rng, sample.masks)
        rows += score_instances(sample, predicted)
        p, t = torch.from_numpy(predicted).int(), torch.from_numpy(sample.masks).int()
        iou.update(p, t)
        f1.update(p, t)
    scores = ScoreTable(rows).summary()["global_pixels"]
    assert scores == pytest.approx({"miou": float(iou.compute()), "f1": float(f1.compute())}, rel=1e-6)


def test_the_primary_score_is_the_mean_over_instances_of_an_image_and_then_over_images():
    rng = np.random.default_rng(2)
    rows, pairs = [], {}
    for number, count in enumerate([1, 5, 2]):
        sample = random_sample(rng, f"{number}.png", count)
        predicted = disturbed(rng, sample.masks)
        rows += score_instances(sample, predicted)
        pairs[sample.name] = list(zip(sample.masks, predicted, strict=True))
    table = ScoreTable(rows)
    assert (table.miou, table.f1) == pytest.approx(reference.instance_image_mean(pairs), rel=1e-14)


def test_each_average_weighs_what_its_definition_says():
    rows = [
        row("a", "0", 1, 100, 100, 100),  # IoU 1
        row("a", "1", 1, 100, 100, 0),  # IoU 0
        row("b", "0", 2, 1000, 500, 500),  # IoU 1/2, F1 2/3
    ]
    summary = ScoreTable(rows, {1: "car", 2: "ship"}).summary()
    assert summary["instance_image_mean"] == {"miou": 0.5, "f1": pytest.approx((0.5 + 2 / 3) / 2)}
    assert summary["instance_mean"] == {"miou": 0.5, "f1": pytest.approx((1 + 0 + 2 / 3) / 3)}
    assert summary["class_mean"] == {"miou": 0.5, "f1": pytest.approx((0.5 + 2 / 3) / 2)}
    assert summary["global_pixels"] == {"miou": 600 / 1300, "f1": 1200 / 1900}
    assert summary["per_class"] == {
        "car": {"instances": 2, "miou": 0.5, "f1": 0.5},
        "ship": {"instances": 1, "miou": 0.5, "f1": pytest.approx(2 / 3)},
    }
    assert "volume_dsc" not in summary


def test_classes_that_share_a_name_are_kept_apart():
    table = ScoreTable([row("a", "0", 1), row("a", "1", 2), row("a", "2", 3)], {1: "cat", 2: "cat", 3: "dog"})
    assert list(table.summary()["per_class"]) == ["cat (1)", "cat (2)", "dog"]


def test_volume_dice_is_taken_over_the_stacked_slices_of_an_organ():
    rng = np.random.default_rng(3)
    rows, slices = [], []
    for number in range(8):
        sample = random_sample(rng, f"slice{number}", 3, volume=f"case{number % 3}")
        predicted = disturbed(rng, sample.masks)
        rows += score_instances(sample, predicted)
        parts = zip(sample.instances, sample.masks, predicted, strict=True)
        slices += [(sample.volume, instance.class_id, truth, mask) for instance, truth, mask in parts]
    table, expected = ScoreTable(rows), reference.volume_dice(slices)
    assert table.volume_dice().keys() == expected.keys()
    for volume, organs in expected.items():
        assert table.volume_dice()[volume] == pytest.approx(organs, rel=1e-15)
    means = [sum(organs.values()) / len(organs) for organs in expected.values()]
    assert table.dsc == pytest.approx(sum(means) / len(means), rel=1e-14)
    assert table.summary()["volume_dsc"]["volumes"] == 3


def test_an_organ_that_is_empty_in_truth_and_prediction_is_not_counted():
    rows = [
        row("s0", "0", 1, 10, 10, 10, volume="v"),
        row("s0", "1", 2, 0, 0, 0, volume="v"),
        row("s1", "0", 3, 0, 4, 0, volume="v"),
    ]
    table = ScoreTable(rows)
    assert table.volume_dice() == {"v": {1: 1.0, 3: 0.0}}
    assert table.dsc == 0.5
    assert table.summary()["not_counted"] == 1
    assert table.summary()["instance_image_mean"]["miou"] == 0.5
    assert "1 of them not counted" in str(table)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_processes_in_any_order_give_the_table_of_one_process_to_the_bit(seed, processes, shuffler):
    rows = random_rows(seed % 50, volumes=bool(seed % 2))
    whole = ScoreTable(rows, {1: "liver", 2: "spleen"})
    shuffled = rows.copy()
    shuffler.shuffle(shuffled)
    # Distributed samplers repeat rows so that all processes have equally many.
    parts = [ScoreTable(dict.fromkeys(shuffled[i::processes] + shuffled[:1]), whole.classes) for i in range(processes)]
    shuffler.shuffle(parts)
    merged = parts[0].merge(*parts[1:])
    assert merged == whole
    assert json.dumps(merged.summary()) == json.dumps(whole.summary())
    assert str(merged) == str(whole)


def test_a_mean_of_many_numbers_does_not_depend_on_their_order_in_the_last_bit():
    rows = [row(str(i), "0", 1, 1000 + i, 900, 300 + i % 7) for i in range(500)]
    expected = ScoreTable(rows).miou
    assert expected == math.fsum(r.iou for r in rows) / 500
    orders = (random.Random(seed).sample(rows, 500) for seed in range(20))
    # Not `sum`, which compensates from Python 3.12 on.
    naive = {reduce(add, (r.iou for r in order)) / 500 for order in orders}
    assert len(naive) > 1  # so that the assertion above is not empty


def test_a_table_survives_csv_and_has_the_columns_promised(tmp_path):
    table = ScoreTable(random_rows(1, volumes=True), {1: "left, kidney", 2: 'a "b"'})
    table.to_csv(tmp_path / "scores.csv")
    assert ScoreTable.from_csv(tmp_path / "scores.csv") == table
    header, first, *_ = (tmp_path / "scores.csv").read_text().splitlines()
    assert header == "image,instance,class,class_id,area,predicted_area,intersection,union,iou,f1,volume"
    assert first.startswith("0.png,0,")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_json_holds_the_definition_of_every_average(tmp_path):
    table = ScoreTable(random_rows(2, volumes=True))
    table.to_json(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    averages = {"instance_image_mean", "instance_mean", "class_mean", "global_pixels", "volume_dsc"}
    assert averages <= content["scores"].keys()
    assert averages <= content["definitions"].keys()
    assert content["scores"]["instance_image_mean"]["miou"] == table.miou


def test_the_printed_table_explains_every_number():
    text = str(ScoreTable(random_rows(2, volumes=True), {1: "liver", 2: "spleen", 3: "aorta"}))
    for title in ("instance-image mean", "all-instance mean", "class mean", "global pixels", "volume DSC"):
        assert text.count(title) == 2, title
    assert "The primary score" in text
    assert "liver" in text
    assert max(map(len, text.splitlines())) <= 100


def test_each_average_is_printed_and_defined_with_the_name_that_the_field_has_for_it():
    table = ScoreTable(random_rows(2, volumes=True))
    lines, definitions = str(table).splitlines(), table.definitions()
    for average, title, name in (
        ("instance_image_mean", "instance-image mean", "samplewise macro"),
        ("instance_mean", "all-instance mean", "macro over instances"),
        ("class_mean", "class mean", "macro over classes"),
        ("global_pixels", "global pixels", "global micro"),
    ):
        assert name in definitions[average]
        (row,) = [line for line in lines if line.startswith(f"{title} ")]
        assert row.endswith(f"   {name}")
    assert "samplewise macro" in definitions["volume_dsc"]


def test_the_prompt_stands_beside_the_definitions_and_tables_of_two_prompts_are_not_merged(tmp_path):
    tight, loose = ScoreTable([row()], prompt="The tight box."), ScoreTable([row("b")], prompt="A loose box.")
    tight.to_json(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["definitions"]["prompt"] == "The tight box."
    assert str(tight).endswith("\nprompt: The tight box.")
    assert tight.merge(ScoreTable([row("b")])).prompt == "The tight box."
    with pytest.raises(ValueError, match=r"different prompts, \['A loose box.', 'The tight box.'\]"):
        tight.merge(loose)


def test_whose_masks_were_scored_stands_there_too_and_two_kinds_are_not_merged(tmp_path):
    released, tuned = ScoreTable([row()], prompt="A box.", masks="Released."), ScoreTable([row("b")], masks="Tuned.")
    released.to_json(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["definitions"]["masks"] == "Released."
    assert str(released).endswith("\nprompt: A box.\nmasks: Released.")
    assert released.merge(ScoreTable([row("b")])).masks == "Released."
    with pytest.raises(ValueError, match=r"different masks, \['Released.', 'Tuned.'\]"):
        released.merge(tuned)


def test_an_empty_table_has_undefined_scores_and_still_prints_and_saves(tmp_path):
    table = ScoreTable([])
    assert math.isnan(table.miou)
    assert math.isnan(table.f1)
    assert math.isnan(table.dsc)
    assert "0 instances in 0 images" in str(table)
    table.to_json(tmp_path / "empty.json")
    assert json.loads((tmp_path / "empty.json").read_text())["scores"]["instance_image_mean"]["miou"] is None


def test_a_score_twice_in_one_table_is_refused():
    with pytest.raises(ValueError, match=r"Instance 0 of a is scored twice.*merge"):
        ScoreTable([row(), row()])


def test_tables_that_disagree_are_not_merged():
    with pytest.raises(ValueError, match=r"Instance 0 of a has different counts.*intersection=5.*intersection=6"):
        ScoreTable([row()]).merge(ScoreTable([row(intersection=6)]))
    with pytest.raises(ValueError, match=r"Class 1 is 'cat' in one table and 'dog' in another"):
        ScoreTable([row()], {1: "cat"}).merge(ScoreTable([row("b")], {1: "dog"}))


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match=r"instance 0 of a: intersection 11, area 10, predicted area 10"):
        row(intersection=11)


def test_masks_that_do_not_fit_the_sample_are_refused():
    sample = random_sample(np.random.default_rng(0), instances=2)
    with pytest.raises(ValueError, match=r"a\.png has 2 instances but 1 predicted masks"):
        score_instances(sample, sample.masks[:1])
    with pytest.raises(ValueError, match=r"instance 0 of a\.png is bool of shape \(5, 6\).*original size \(20, 24\)"):
        score_instances(sample, np.zeros((2, 5, 6), dtype=bool))
    with pytest.raises(ValueError, match=r"is uint8 of shape \(20, 24\); scoring needs bool"):
        score_instances(sample, sample.masks.astype(np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,iou\na,0.5\n", r"not a table of instance scores: it lacks instance, class"),
        ("{header}\na,0,cat,1,ten,1,1,1,1,1,\n", r"line 2: invalid literal for int\(\).*'ten'"),
        ("{header}\na,0,cat,1,3,3,4,2,1,1,\n", r"line 2: Impossible counts.*intersection 4"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_line(tmp_path, content, message):
    header = "image,instance,class,class_id,area,predicted_area,intersection,union,iou,f1,volume"
    (tmp_path / "x.csv").write_text(content.replace("{header}", header))
    with pytest.raises(ValueError, match=message):
        ScoreTable.from_csv(tmp_path / "x.csv")


def test_scoring_reads_only_the_documented_attributes_of_a_sample():
    mask = np.ones((2, 3), dtype=bool)
    instance = SimpleNamespace(box=(1, 1, 4, 3), mask=mask, class_id=7, id="x")
    sample = SimpleNamespace(name="n", size=(5, 6), instances=(instance,), void=None, volume=None)
    predicted = np.zeros((1, 5, 6), dtype=bool)
    predicted[0, :2, :3] = True
    (score,) = score_instances(sample, predicted)
    assert (score.area, score.predicted_area, score.intersection, score.union) == (6, 6, 2, 10)


@pytest.mark.parametrize("name", ["nuclei", "voc-layout", "nwpu-vhr10"])
def test_the_truth_scores_one_on_real_images(real_data, name):
    from samparser.data import DataSettings, open_dataset

    dataset = open_dataset(DataSettings(data=str(real_data / name), limit=4), "val" if name == "voc-layout" else "all")
    rows = []
    for index in range(min(4, len(dataset))):
        rows += score_instances(dataset[index], dataset[index].masks)
    table = ScoreTable(rows, dataset.classes)
    assert len(table) >= 4
    for average in ("instance_image_mean", "instance_mean", "class_mean", "global_pixels"):
        assert table.summary()[average] == {"miou": 1.0, "f1": 1.0}
