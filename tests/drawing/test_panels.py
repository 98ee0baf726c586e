"""Panels: what is drawn in them, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from samparser.drawing import Panel, best_median_worst, draw_panels, side_by_side
from samparser.scoring import InstanceScore, ScoreTable
from tests.drawing.examples import example


def test_panels_show_image_truth_and_each_model_with_its_mean_iou(tmp_path, figures):
    image, truth = example()
    half = truth.copy()
    half[0] = False
    path = side_by_side(image, truth, {"zero-shot": half, "tuned": truth}, tmp_path / "x.png", title="nuclei")
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles == ["image", "ground truth (3 objects)", "zero-shot: mean IoU 66.7 %", "tuned: mean IoU 100.0 %"]
    assert figures[0].axes[0].get_ylabel() == "nuclei"
    assert np.array_equal(figures[0].axes[0].get_images()[0].get_array(), image)  # small images are shown whole
    width, height = Image.open(path).size
    assert width > 1000
    assert width > 3 * height


def test_panels_show_the_part_with_masks_of_a_large_image_unless_told_not_to(tmp_path, figures):
    image, truth = np.zeros((400, 600, 3), np.uint8), np.zeros((1, 400, 600), dtype=bool)
    truth[0, 100:300, 50:60] = True
    moved = np.roll(truth, 20, axis=2)
    side_by_side(image, truth, {"tuned": moved}, tmp_path / "x.png")
    side_by_side(image, truth, {"tuned": moved}, tmp_path / "x.png", zoom=False)
    (zoomed, *_), (whole, *_) = (figure.axes for figure in figures)
    assert zoomed.get_title() == "image (part)"
    # rows 100..300 and columns 50..80, with a tenth around them; no strip, so the columns are widened
    assert zoomed.get_images()[0].get_array().shape == (240, 192, 3)
    assert whole.get_title() == "image"
    assert whole.get_images()[0].get_array().shape == (400, 600, 3)
    assert figures[0].axes[2].get_title() == figures[1].axes[2].get_title() == "tuned: mean IoU 0.0 %"


def test_rows_of_panels_are_drawn_below_each_other(tmp_path, figures):
    rows = [Panel(*example(seed), {"tuned": example(seed)[1]}, name) for seed, name in enumerate(["best", "worst"])]
    draw_panels(rows, tmp_path / "x.png")
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["best", "", "", "worst", "", ""]


def test_panels_refuse_masks_that_do_not_fit(tmp_path):
    image, truth = example()
    with pytest.raises(ValueError, match=r"'tuned' are bool \(2, 30, 40\); drawing needs bool \(3, 30, 40\)"):
        side_by_side(image, truth, {"tuned": truth[:2]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"'ground truth' are uint8 \(3, 30, 40\)"):
        side_by_side(image, truth.astype(np.uint8), {"tuned": truth}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"same models in the same order; got \['a'\] and \['b'\]"):
        draw_panels([Panel(image, truth, {"a": truth}), Panel(image, truth, {"b": truth})], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"nothing to draw"):
        draw_panels([], tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_best_median_and_worst_are_picked_by_mean_iou():
    scores = {"a": 10, "b": 90, "c": 50, "d": 40}
    table = ScoreTable([InstanceScore(name, "0", 1, 100, 100, common) for name, common in scores.items()])
    assert best_median_worst(table) == {"best": "b", "median": "d", "worst": "a"}
    one = ScoreTable([InstanceScore("only", "0", 1, 1, 1, 1)])
    assert best_median_worst(one) == dict.fromkeys(("best", "median", "worst"), "only")
    with pytest.raises(ValueError, match="no scored image"):
        best_median_worst(ScoreTable([]))
