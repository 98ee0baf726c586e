"""Matplotlib figures without pyplot: how one is made, and the one way in which a picture is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samparser._extras import require
from samparser._files import replacing


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches: no window system and no global state, so it is safe in threads.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = require("matplotlib.figure", "Drawing figures").Figure
    return figure(figsize=(width, height), layout="constrained", dpi=150)


def new_grid(count: int, width: float, height: float, *, margin: tuple[float, float] = (0, 0)) -> tuple[Any, Any]:
    """Return a figure of so many parts of width x height inches, three in a row, and its axes (rows, columns).

    Axes beyond the last part show nothing. `margin` is added to the figure's width and height.

    Raises:
        ImportError: matplotlib is missing.
    """
    columns = min(3, count)
    rows = -(-count // columns)
    figure = new_figure(columns * width + margin[0], rows * height + margin[1])
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def save_picture(picture: Any, path: str | Path) -> Path:
    """Save a matplotlib figure or a Pillow image, whole or not at all; the suffix chooses the format.

    Returns:
        The path written.
    """
    with replacing(path) as temporary:
        (picture.savefig if hasattr(picture, "savefig") else picture.save)(temporary)
    return Path(path)
