"""Figures: what is drawn in them, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from samparser.drawing import Panel, best_median_worst, draw_panels, score_curves, side_by_side, spectra
from samparser.drawing.palette import INSTANCE_COLOURS, LINE_COLOURS
from samparser.scoring import InstanceScore, ScoreTable


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures as they are saved, to read what was drawn."""
    from matplotlib.figure import Figure

    saved = []
    original = Figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def example(seed=0, size=(30, 40), count=3):
    rng = np.random.default_rng(seed)
    truth = np.zeros((count, *size), dtype=bool)
    for mask in truth:
        y, x = rng.integers(0, size[0] - 10), rng.integers(0, size[1] - 10)
        mask[y : y + 10, x : x + 10] = True
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), truth


def write_log(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LOG = [
    {"step": 1, "epoch": 0.1, "loss": 1.5, "ce": 0.5, "focal": 0.0, "dice": 1.0},
    {"step": 2, "epoch": 0.2, "loss": 1.0, "ce": 0.3, "focal": 0.0, "dice": 0.7},
    {"step": 2, "eval_miou": 0.6, "eval_f1": 0.7},
    {"step": 4, "eval_miou": 0.8, "eval_f1": 0.75},
    {"step": 6, "eval_miou": 0.7, "eval_f1": 0.85},
    {"step": 6, "train_runtime": 3.0},
]


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


def test_curves_show_the_scores_before_tuning_as_level_lines(tmp_path, figures):
    rows = [{"step": 0, "before_miou": 0.6, "before_f1": 0.7}, {"step": 5, "eval_miou": 0.5, "eval_f1": 0.65}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score_curves(tmp_path / "log.jsonl", tmp_path / "x.png")
    (axis,) = figures[0].axes
    levels = {line.get_ydata()[0] for line in axis.get_lines() if list(line.get_xdata()) == [0, 1]}
    assert levels == {60.0, 70.0}
    assert {"mIoU before tuning", "F1 (= Dice) before tuning"} <= {text.get_text() for text in axis.texts}


def test_curves_show_the_loss_its_terms_and_the_scores_in_percent(tmp_path, figures):
    log = write_log(tmp_path / "log.jsonl", LOG)
    score_curves(log, tmp_path / "curves.png")
    loss, scores = figures[0].axes
    assert [line.get_label() for line in loss.lines] == ["loss (Eq. 5)", "cross-entropy", "Dice loss"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 1.5], [2, 1.0]]
    drawn = {line.get_label(): line.get_xydata() for line in scores.lines}
    np.testing.assert_allclose(drawn["mIoU"], [[2, 60], [4, 80], [6, 70]])
    np.testing.assert_allclose(drawn["F1 (= Dice)"], [[2, 70], [4, 75], [6, 85]])
    assert [text.get_text() for text in scores.texts] == ["80.0", "85.0"]  # the best of each is marked
    assert scores.get_ylabel() == "validation score (%)"
    assert len({line.get_color() for line in loss.lines}) == 3
    assert len({line.get_linestyle() for line in loss.lines}) == 3


def test_a_log_without_scores_has_one_panel_and_a_cut_off_line_is_left_out(tmp_path, figures):
    log = write_log(tmp_path / "log.jsonl", LOG[:2])
    log.write_text(log.read_text() + '{"step": 3, "lo')
    score_curves(log, tmp_path / "curves.png")
    (loss,) = figures[0].axes
    assert len(loss.lines[0].get_xdata()) == 2


def test_a_log_without_anything_to_draw_or_with_a_broken_line_is_refused(tmp_path):
    empty = write_log(tmp_path / "empty.jsonl", LOG[-1:])
    with pytest.raises(ValueError, match=r"empty\.jsonl has no row with any of loss, ce"):
        score_curves(empty, tmp_path / "x.png")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 2 is not JSON: 'nonsense'"):
        score_curves(broken, tmp_path / "x.png")
    broken.write_text("[1]\n{}\n")
    with pytest.raises(ValueError, match=r"line 1 is not a JSON object"):
        score_curves(broken, tmp_path / "x.png")


def test_spectra_show_coefficients_before_and_after_and_the_change(tmp_path, figures):
    before = {"conv1": torch.linspace(5, 1, 8), "conv2": torch.linspace(1000, 1, 8)}
    after = {name: (p + 0.1).requires_grad_() for name, p in before.items()}
    spectra(before, after, tmp_path / "spectra.png")
    top, second, bottom, _ = figures[0].axes
    assert [line.get_label() for line in top.lines] == ["before", "after"]
    np.testing.assert_allclose(top.lines[1].get_ydata(), before["conv1"].numpy() + 0.1, rtol=1e-6)
    assert [bar.get_height() for bar in bottom.patches] == pytest.approx([0.1] * 8, rel=1e-4)
    norm = 100 * 0.1 * 8**0.5 / float(before["conv1"].norm())
    assert bottom.get_title() == f"norm of the change: {norm:.3g} % of the norm of p"
    assert (top.get_yscale(), second.get_yscale()) == ("linear", "log")
    spectra(before["conv1"], after["conv1"], tmp_path / "one.png")
    assert len(figures[1].axes) == 2


def test_spectra_that_do_not_belong_together_are_refused(tmp_path):
    p = np.ones(4)
    with pytest.raises(ValueError, match=r"got \['a'\] before and \['b'\] after"):
        spectra({"a": p}, {"b": p}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"a: coefficients are vectors of one length; got shapes \(4,\) and \(3,\)"):
        spectra({"a": p}, {"a": p[:3]}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"a: a coefficient is not finite"):
        spectra({"a": p}, {"a": p * np.nan}, tmp_path / "x.png")


def test_the_colours_are_those_of_okabe_and_ito():
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(INSTANCE_COLOURS) | set(LINE_COLOURS) <= okabe_ito
    assert len(set(INSTANCE_COLOURS)) == 7


def test_figures_leave_pyplot_and_its_window_system_alone(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    side_by_side(*example(), {"tuned": example()[1]}, tmp_path / "x.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'Drawing figures needs matplotlib.*pip install "samparser\[train\]"'):
        side_by_side(*example(), {"tuned": example()[1]}, tmp_path / "x.png")
