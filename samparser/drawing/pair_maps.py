"""Pair maps: which left and right bases of each layer an adapter pairs, and how far each pair moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .figures import new_grid, save_picture
from .palette import BLACK


def pair_maps(pairs: Mapping[str, tuple[int, Sequence[tuple[int, int, float]]]], path: str | Path) -> Path:
    """Draw each layer's pairs as dots at their right and left base, red where they grew and blue where they fell.

    Args:
        pairs: By the layer's name its number of bases, and (row, column, change) of each pair, counted from 0.
        path: File to write; the suffix chooses the format.

    Returns:
        The path written.

    Raises:
        ValueError: There is no layer, or one has no pairs.
        ImportError: matplotlib is missing.
    """
    if not pairs or not all(dots for _, dots in pairs.values()):
        raise ValueError(f"There are no pairs to draw in {next((n for n, (_, d) in pairs.items() if not d), 'it')}.")
    figure, axes = new_grid(len(pairs), 4.6, 4.2)
    for axis, (layer, (rank, dots)) in zip(axes.flat, pairs.items(), strict=False):
        left, right, changes = zip(*dots, strict=True)
        largest = max(map(abs, changes)) or 1.0
        axis.plot([0, rank - 1], [0, rank - 1], color=BLACK, linewidth=0.6, alpha=0.4)
        sizes = [8 + 50 * abs(change) / largest for change in changes]
        shown = axis.scatter(
            right,
            left,
            c=changes,
            s=sizes,
            cmap="coolwarm",
            vmin=-largest,
            vmax=largest,
            edgecolors=BLACK,
            linewidths=0.4,
        )
        figure.colorbar(shown, ax=axis, shrink=0.8, label="change along the pair")
        axis.set_xlim(-1, rank)
        axis.set_ylim(rank, -1)
        axis.set_aspect("equal")
        axis.set_xlabel("right base j, largest p first")
        axis.set_ylabel("left base i, largest p first")
        axis.set_title(f"{layer} ({len(dots)} pairs)", fontsize=10)
    return save_picture(figure, path)
