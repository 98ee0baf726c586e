"""Scores against the scale of adapters."""

import math

import numpy as np
import pytest

from samparser.drawing.scale_curves import scale_curves


def test_a_panel_for_each_score_a_line_for_each_adapter_and_a_star_at_the_best(tmp_path, figures):
    points = [(0.6, 0.0), (0.8, 0.01), (0.7, math.nan)]
    curves = {"mIoU": {"a": ([0, 1, 0.5], points), "b": ([0, 1, 0.5], points)}, "F1": {"a": ([0, 1, 0.5], points)}}
    scale_curves(curves, tmp_path / "x.png", ground="nuclei test", note="band: chance")
    first, second = figures[0].axes
    assert first.get_title() == "mIoU, nuclei test"
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["a", "b"]
    assert len(second.get_legend().get_texts()) == 1
    line = next(one for one in first.lines if one.get_label() == "a")
    np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(line.get_ydata(), [60, 70, 80])
    star = next(one for one in second.lines if one.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (1, 80)
    assert figures[0].get_supxlabel() == "star: best; band: chance"


def test_points_that_do_not_fit_their_scales_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a: 2 scales have 1 points of mIoU"):
        scale_curves({"mIoU": {"a": ([0, 1], [(0.5, 0.0)])}}, tmp_path / "x.png")
    for nothing in ({}, {"mIoU": {}}):
        with pytest.raises(ValueError, match="no curve to draw"):
            scale_curves(nothing, tmp_path / "x.png")
