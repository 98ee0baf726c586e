"""Heatmaps: square matrices of cosines with their numbers written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .figures import new_grid, save_picture


def cosine_heatmaps(matrices: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], path: str | Path) -> Path:
    """Draw square matrices of cosines side by side, blue for opposite, white for unrelated, red for alike.

    Args:
        matrices: By title, each (n, n) with values from -1 to 1.
        names: Of rows and columns, n.
        path: File to write; the suffix chooses the format.

    Returns:
        The path written.

    Raises:
        ValueError: There is no matrix, or one has another shape.
        ImportError: matplotlib is missing.
    """
    squares = {title: np.asarray(matrix, dtype=np.float64) for title, matrix in matrices.items()}
    if not squares:
        raise ValueError("There is no matrix to draw.")
    for title, square in squares.items():
        if square.shape != (len(names), len(names)):
            raise ValueError(f"{title}: the matrix of {len(names)} names has shape {square.shape}.")
    side = max(2.6, 1.3 + 0.75 * len(names))
    figure, axes = new_grid(len(squares), side, side, margin=(0.8, 0.3))
    columns = axes.shape[1]
    for number, (axis, (title, square)) in enumerate(zip(axes.flat, squares.items(), strict=False)):
        image = axis.imshow(square, vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=9)
        axis.set_yticks(range(len(names)), names if number % columns == 0 else [""] * len(names), fontsize=9)
        axis.set_title(title, fontsize=9)
        for i, j in np.ndindex(square.shape):
            dark = abs(square[i, j]) > 0.6
            colour = "white" if dark else "black"
            axis.text(j, i, f"{square[i, j]:.2f}", ha="center", va="center", fontsize=9, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7, label="cosine of the changes")
    return save_picture(figure, path)
