"""Moves of an adapter: how far it changes each layer, and along which directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from samparser.tuner import SVDCoefficientLayer


@dataclass(frozen=True)
class Direction:
    """One rank-one direction of a change.

    Args:
        kind: `"coefficient"`, along `u_i v_i^T`; `"pair"`, along `u_i v_j^T`; `"term"`, along vectors of its own.
        row: i, from 0; of a term its number.
        column: i or j, from 0; of a term its number.
        before: Its coefficient in the base weight, p0_i; 0 for pairs and terms.
        after: With the adapter at its present scaling.
        share: Square of the change along it, over the square of the norm of the layer's change; 0 where that is none.
    """

    kind: Literal["coefficient", "pair", "term"]
    row: int
    column: int
    before: float
    after: float
    share: float

    def __str__(self) -> str:
        name = {"coefficient": f"p[{self.row}]", "pair": f"u[{self.row}]v[{self.column}]", "term": f"term {self.row}"}
        return f"{name[self.kind]} {self.after - self.before:+.3g} ({100 * self.share:.0f} %)"


@dataclass(frozen=True)
class LayerMove:
    """What an adapter changes in one layer, at its present scaling.

    Args:
        layer: The layer's name.
        coefficients: How many coefficients the adapter has there.
        terms: How many terms of an expansion, equal pairs counted once.
        norm: Frobenius norm of the change of the weight.
        relative: That norm over the norm of the weight.
        by_coefficients: Share of the square of `norm` that the coefficients hold; 0 where nothing moved.
        half: How many directions hold half of the square of `norm`, the largest first.
        largest: The directions that moved most, the largest share first.
    """

    layer: str
    coefficients: int
    terms: int
    norm: float
    relative: float
    by_coefficients: float
    half: int
    largest: tuple[Direction, ...]


def adapted_layers(model: nn.Module, adapter: str) -> list[SVDCoefficientLayer]:
    """Find the layers that an adapter changes.

    Raises:
        ValueError: The model has no such adapter of coefficients.
    """
    layers = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
    found = [layer for layer in layers if adapter in layer.states]
    if not found:
        known = sorted({name for layer in layers for name in layer.states})
        raise ValueError(f"The model has no SVD coefficient adapter {adapter!r}; it has {known or 'none'}.")
    return found


@torch.no_grad()
def layer_moves(model: nn.Module, adapter: str = "default", *, most: int = 5) -> list[LayerMove]:
    """Measure what an adapter changes, layer by layer.

    Args:
        model: A model with adapters of coefficients.
        adapter: The adapter's name.
        most: How many directions of each layer to name.

    Raises:
        ValueError: The model has no such adapter.
    """
    return [_move(layer, adapter, most) for layer in adapted_layers(model, adapter)]


def _move(layer: SVDCoefficientLayer, adapter: str, most: int) -> LayerMove:
    norm = float(layer.get_delta_weight(adapter).double().norm())
    weight = float(layer.unmerged_weight.double().norm())
    square = norm**2 or 1.0
    directions = list(_directions(layer, adapter, square))
    moved = sorted((one for one in directions if one.share > 0), key=lambda one: -one.share)
    coefficients = [one for one in directions if one.kind == "coefficient"]
    return LayerMove(
        layer.layer_name,
        len(coefficients),
        len(directions) - len(coefficients),
        norm,
        norm / weight if weight else 0.0,
        min(1.0, sum(one.share for one in coefficients)),
        _half(moved),
        tuple(moved[:most]),
    )


def _half(moved: Sequence[Direction]) -> int:
    """How many of the directions, sorted by share, hold half of what they hold together."""
    reached = list(accumulate(one.share for one in moved))
    return sum(share < reached[-1] / 2 for share in reached) + 1 if reached else 0


def _directions(layer: SVDCoefficientLayer, adapter: str, square: float) -> Iterator[Direction]:
    p0, p = layer.spectrum(adapter)
    moved = (p - p0).double() * layer.scaling[adapter]
    for number, (start, change) in enumerate(zip(p0.tolist(), moved.tolist(), strict=True)):
        yield Direction("coefficient", number, number, start, start + change, change**2 / square)
    expansion = layer.states[adapter].expansion
    if expansion is None:
        return
    left, change, right = (tensor.double() for tensor in layer.terms_of_expansion(adapter))
    moved = change * layer.scaling[adapter]
    # A sum of adapters may hold a pair twice.
    pairs: dict[tuple[int, int], float] = {}
    for row, column, one in zip(expansion.rows.tolist(), expansion.columns.tolist(), moved.tolist(), strict=False):
        pairs[row, column] = pairs.get((row, column), 0.0) + one
    for (row, column), one in pairs.items():
        yield Direction("pair", row, column, 0.0, one, one**2 / square)
    count = len(expansion.rows)
    squares = (moved * left.norm(dim=0) * right.norm(dim=1)).square()
    for number, (one, length) in enumerate(zip(moved[count:].tolist(), squares[count:].tolist(), strict=True)):
        yield Direction("term", number, number, 0.0, one, length / square)


def spectra_of(model: nn.Module, adapter: str, *, most: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the coefficients before and after of the layers that an adapter changes most, relative to their weight.

    Returns:
        p0 and p, each (rank,) by the layer's name, in the model's order; at most `most` layers.
    """
    pairs = {layer.layer_name: layer.spectrum(adapter) for layer in _most_changed(model, adapter, most)}
    before, after = ({name: pair[side].detach().cpu() for name, pair in pairs.items()} for side in (0, 1))
    return before, after


def pairs_of(model: nn.Module, adapter: str, *, most: int = 6) -> dict[str, tuple[int, list[tuple[int, int, float]]]]:
    """Read the pairs of bases of an adapter: for each layer its rank and the (row, column, change) of each pair.

    Returns:
        By the layer's name, in the model's order, of at most `most` layers, those that change most relative to their
        weight; layers without pairs are left out.
    """
    found = {}
    for layer in _most_changed(model, adapter, most):
        pairs = [(one.row, one.column, one.after) for one in _directions(layer, adapter, 1.0) if one.kind == "pair"]
        if pairs:
            found[layer.layer_name] = (layer.bases.rank, pairs)
    return found


def _most_changed(model: nn.Module, adapter: str, most: int) -> list[SVDCoefficientLayer]:
    moves = {move.layer: move.relative for move in layer_moves(model, adapter, most=0)}
    chosen = set(sorted(moves, key=lambda name: -moves[name])[:most])
    return [layer for layer in adapted_layers(model, adapter) if layer.layer_name in chosen]


def moves_table(moves: Sequence[LayerMove]) -> str:
    """Write a line for each layer: how far it moved, what part of that is of coefficients, and its largest directions.

    A change is in percent of the norm of the weight, a direction's share in percent of the square of the change.
    """
    width = max(5, *(len(move.layer) for move in moves))
    lines = [f"{'layer':{width}}  change of weight  by coefficients  half of it in  largest"]
    for move in moves:
        share = f"{100 * move.by_coefficients:.0f} %" if move.norm else "-"
        half = f"{move.half} of {move.coefficients + move.terms}"
        largest = ", ".join(map(str, move.largest[:3])) or "nothing moved"
        change = f"{100 * move.relative:.3g} %"
        lines.append(f"{move.layer:{width}}  {change:>16}  {share:>15}  {half:>13}  {largest}")
    return "\n".join(lines)
