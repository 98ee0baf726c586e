"""Pairs of bases as dots."""

import pytest

from samparser.drawing.pair_maps import pair_maps


def test_a_dot_stands_at_its_right_and_left_base(tmp_path, figures):
    pair_maps({"conv1": (8, [(1, 5, 0.5), (7, 0, -1.0)]), "conv2": (4, [(0, 1, 0.0)])}, tmp_path / "x.png")
    first, second = figures[0].axes[:2]
    assert first.collections[0].get_offsets().tolist() == [[5, 1], [0, 7]]
    assert first.collections[0].get_array().tolist() == [0.5, -1.0]
    assert first.collections[0].get_clim() == (-1, 1)
    assert first.get_title() == "conv1 (2 pairs)"
    assert (second.get_xlim(), second.get_ylim()) == ((-1, 4), (4, -1))


def test_a_layer_without_pairs_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no pairs to draw in conv2"):
        pair_maps({"conv1": (8, [(1, 5, 0.5)]), "conv2": (4, [])}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no pairs to draw"):
        pair_maps({}, tmp_path / "x.png")
