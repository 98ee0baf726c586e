"""Matrices of cosines with their numbers."""

import numpy as np
import pytest

from samparser.drawing.heatmaps import cosine_heatmaps


def test_each_matrix_has_its_numbers_on_one_scale(tmp_path, figures):
    squares = {"all": [[1, -0.25], [-0.25, 1]], "conv1": [[1, 0.5], [0.5, 1]]}
    assert cosine_heatmaps(squares, ["a", "b"], tmp_path / "x.png") == tmp_path / "x.png"
    first, second, bar = figures[0].axes
    assert [axis.get_title() for axis in (first, second)] == ["all", "conv1"]
    assert [text.get_text() for text in first.texts] == ["1.00", "-0.25", "-0.25", "1.00"]
    assert first.images[0].get_clim() == second.images[0].get_clim() == (-1, 1)
    np.testing.assert_array_equal(second.images[0].get_array(), squares["conv1"])
    assert [label.get_text() for label in first.get_xticklabels()] == ["a", "b"]
    assert bar.get_ylabel() == "cosine of the changes"


def test_five_matrices_take_two_rows(tmp_path, figures):
    cosine_heatmaps({str(i): [[1.0]] for i in range(5)}, ["a"], tmp_path / "x.png")
    assert [axis.axison for axis in figures[0].axes] == [True] * 5 + [False, True]


def test_what_is_no_square_of_the_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"all: the matrix of 2 names has shape \(1, 1\)"):
        cosine_heatmaps({"all": [[1.0]]}, ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="no matrix to draw"):
        cosine_heatmaps({}, ["a"], tmp_path / "x.png")
