"""How far an adapter moves each layer, and along which directions."""

import pytest
import torch

from samparser.inspection import layer_moves, moves_table
from samparser.inspection.moves import adapted_layers, pairs_of, spectra_of

from .conftest import NECK, tuned


def reference(model, layer_name):
    """The change of a layer along all pairs of its bases, from the weights with and without the adapter."""
    layer = next(one for one in adapted_layers(model, "default") if one.layer_name == layer_name)
    change = (layer.weight - layer.base_weight).flatten(1).double()
    return change, layer.bases.u.double().T @ change @ layer.bases.vh.double().T, layer


@torch.no_grad()
def test_moves_are_those_of_the_weights():
    model = tuned(expansion="pairs")
    for move in layer_moves(model, most=100):
        change, along, layer = reference(model, move.layer)
        assert move.norm == pytest.approx(float(change.norm()), rel=1e-4)
        assert move.relative == pytest.approx(float(change.norm() / layer.base_weight.double().norm()), rel=1e-4)
        assert (move.coefficients, move.terms) == (layer.bases.rank, 6)
        diagonal = float(along.diagonal().square().sum() / change.square().sum())
        assert move.by_coefficients == pytest.approx(diagonal, rel=1e-3)
        assert sum(one.share for one in move.largest) == pytest.approx(1, rel=1e-3)
        shares = [one.share for one in move.largest]
        assert shares == sorted(shares, reverse=True)
        for one in move.largest:
            assert one.after - one.before == pytest.approx(float(along[one.row, one.column]), abs=1e-5)
            assert (one.row == one.column) == (one.kind == "coefficient")
            expected = float(layer.bases.p[one.row]) if one.kind == "coefficient" else 0.0
            assert one.before == pytest.approx(expected)
        assert sum(shares[: move.half]) >= 0.5 > sum(shares[: move.half - 1])


@torch.no_grad()
def test_a_layer_that_does_not_move_says_so():
    model = tuned(size=0.0)
    for move in layer_moves(model):
        assert (move.norm, move.by_coefficients, move.half, move.largest) == (0.0, 0.0, 0, ())
    assert moves_table(layer_moves(model)).count("nothing moved") == 2


@torch.no_grad()
def test_directions_of_its_own_count_by_their_length():
    model = tuned(expansion="gradient", trainable="expansion")
    for move in layer_moves(model, most=10):
        change, _, layer = reference(model, move.layer)
        assert {one.kind for one in move.largest} == {"term"}
        assert move.by_coefficients == 0
        left, c, right = layer.terms_of_expansion("default")
        for one in move.largest:
            alone = float(c[one.row]) * left[:, one.row].outer(right[one.row])
            assert one.share == pytest.approx(float((alone.norm() / change.norm()) ** 2), rel=1e-3)


@torch.no_grad()
def test_a_pair_that_two_adapters_of_a_sum_share_counts_once():
    model = tuned(expansion="pairs")
    model.add_weighted_adapter(["default", "default"], [1.0, 0.5], "sum")
    for one, both in zip(layer_moves(model, most=99), layer_moves(model, "sum", most=99), strict=True):
        assert both.terms == one.terms == 6
        assert both.norm == pytest.approx(1.5 * one.norm, rel=1e-4)
        assert [move.row for move in both.largest[:5]] == [move.row for move in one.largest[:5]]


def test_scaling_scales_the_moves():
    model = tuned()
    before = layer_moves(model)
    model.set_scale("default", 0.5)
    for half, whole in zip(layer_moves(model), before, strict=True):
        assert half.norm == pytest.approx(0.5 * whole.norm, rel=1e-5)


def test_pictures_show_the_layers_that_changed_most():
    model = tuned(expansion="pairs")
    relative = {move.layer: move.relative for move in layer_moves(model)}
    most = max(relative, key=relative.get)
    before, after = spectra_of(model, "default", most=1)
    assert list(before) == list(after) == [most]
    assert set(spectra_of(model, "default")[0]) == set(NECK)
    ((name, (rank, pairs)),) = pairs_of(model, "default", most=1).items()
    assert (name, rank, len(pairs)) == (most, len(before[most]), 6)
    assert pairs_of(tuned(), "default") == {}


def test_an_unknown_adapter_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no SVD coefficient adapter 'other'; it has \['default'\]"):
        layer_moves(tuned(), "other")
