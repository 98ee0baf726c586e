"""Curves and spectra: what is drawn in them, and what is refused."""

import json

import numpy as np
import pytest
import torch

from samparser.drawing import score_curves, spectra


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
    for text in ("[" * 50_000, '{"step": ' + "9" * 5000 + "}"):
        broken.write_text('{"step": 1}\n' + text)
        with pytest.raises(ValueError, match=r"broken\.jsonl, line 2 is not JSON"):
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
