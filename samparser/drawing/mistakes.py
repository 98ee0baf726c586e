"""Pictures of mistakes: what masks have right, what they take too much and what they miss, close up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samparser._extras import require

from .figures import new_figure, save_picture
from .palette import SKY, VERMILION, YELLOW, rgb
from .panels import percent_iou

RIGHT, TOO_MUCH, MISSED = SKY, VERMILION, YELLOW


class CloseUp(NamedTuple):
    """One row of a figure: an image, the boxes that were given, and what models made of them.

    Attributes:
        image: uint8 RGB (H, W, 3).
        truth: bool (N, H, W).
        boxes: (N, 4) as (x0, y0, x1, y1) in pixels of the image.
        predictions: Masks, bool (N, H, W), by what to write above them; mask i answers box i.
        title: Written left of the row.
    """

    image: np.ndarray
    truth: np.ndarray
    boxes: np.ndarray
    predictions: Mapping[str, np.ndarray]
    title: str = ""


def mistakes(image: np.ndarray, truth: np.ndarray, masks: np.ndarray, *, opacity: float = 0.75) -> np.ndarray:
    """Return the image in grey, with colours where masks are right (blue), too large (red) or too small (yellow).

    Each mask is compared with its own object; where objects overlap, a mistake hides what is right.

    Args:
        image: uint8 RGB (H, W, 3).
        truth: bool (N, H, W).
        masks: bool (N, H, W), in the order of the truth.
        opacity: Of the colours, from 0 to 1.

    Returns:
        uint8 RGB (H, W, 3).
    """
    picture = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    painted = {RIGHT: truth & masks, MISSED: truth & ~masks, TOO_MUCH: masks & ~truth}
    colours = picture.copy()
    for colour, each in painted.items():
        colours[each.any(axis=0)] = rgb(colour)
    return ((1 - opacity) * picture + opacity * colours).round().astype(np.uint8)


def draw_mistakes(rows: Sequence[CloseUp], path: str | Path, *, side: int | None = None) -> Path:
    """Draw for each image the boxes that were given and, beside them, where each model is right and where it is not.

    Below each picture stands the mean IoU over all objects of the image. Dark images are shown brighter than they are.

    Args:
        rows: From top to bottom; all of them with the same models.
        path: File to write; the suffix chooses the format.
        side: Pixels of the image that are shown each way, the square with the most whole boxes (`fullest_square`);
            by default 4 times the longer side of the median box, so that objects of any size look alike.

    Returns:
        The path written.

    Raises:
        ValueError: There is no row, or rows differ in their models.
        ImportError: matplotlib is missing.
    """
    if not rows or any(list(row.predictions) != list(rows[0].predictions) for row in rows):
        raise ValueError("Drawing needs at least one row, and the same models in the same order in all of them.")
    columns, size = 1 + len(rows[0].predictions), 2.6
    figure = new_figure(columns * size + 0.3, len(rows) * size + 0.75)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axis, name in zip(grid[0], ("the boxes given", *rows[0].predictions), strict=True):
        axis.set_title(name, fontsize=11)
    for row, axes in zip(rows, grid, strict=True):
        longer = np.median((row.boxes[:, 2:] - row.boxes[:, :2]).max(axis=1))
        view = fullest_square(row.boxes, row.image.shape[:2], side or round(4 * longer))
        _draw(axes[0], _brightened(row.image), row, view, boxes=True)
        axes[0].set_ylabel(row.title, fontsize=11)
        for axis, masks in zip(axes[1:], row.predictions.values(), strict=True):
            _draw(axis, mistakes(row.image, row.truth, masks), row, view)
            axis.set_xlabel(f"mean IoU {percent_iou(row.truth, masks)}", fontsize=11)
    patch = require("matplotlib.patches", "Drawing figures").Patch
    legend = {"right": RIGHT, "too much": TOO_MUCH, "missed": MISSED}
    handles = [patch(facecolor=colour, label=word) for word, colour in legend.items()]
    handles.append(patch(facecolor="none", edgecolor="#888888", label="true outline"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=11)
    return save_picture(figure, path)


def fullest_square(boxes: np.ndarray, size: tuple[int, int], side: int) -> tuple[slice, slice]:
    """Return rows and columns of the square in an image of (height, width) that holds the most boxes as a whole.

    Among equals it is the one furthest up, then left. It is smaller where the image is.
    """
    height, width = (min(side, length) for length in size)
    left, top = np.floor(boxes[:, :2].T)
    right, bottom = np.ceil(boxes[:, 2:].T)
    best, found = -1, (0, 0)
    for y in range(0, size[0] - height + 1, 4):
        rows = (top >= y) & (bottom <= y + height)
        for x in range(0, size[1] - width + 1, 4):
            held = int(np.count_nonzero(rows & (left >= x) & (right <= x + width)))
            if held > best:
                best, found = held, (y, x)
    y, x = found
    return slice(y, y + height), slice(x, x + width)


def _brightened(image: np.ndarray) -> np.ndarray:
    return (image * (255 / max(1, image.max()))).astype(np.uint8)


def _draw(axis: Any, picture: np.ndarray, row: CloseUp, view: tuple[slice, slice], *, boxes: bool = False) -> None:
    rows, columns = view
    axis.imshow(picture[view], interpolation="nearest")
    for truth in row.truth[:, rows, columns]:
        if not boxes and truth.any() and not truth.all():
            axis.contour(truth, levels=[0.5], colors="white", linewidths=1)
    if boxes:
        rectangle = require("matplotlib.patches", "Drawing figures").Rectangle
        for x0, y0, x1, y1 in row.boxes - np.array([columns.start, rows.start] * 2) - 0.5:
            axis.add_patch(rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=YELLOW, linewidth=1.2))
    axis.set(xticks=[], yticks=[], xlim=(-0.5, columns.stop - columns.start - 0.5))
    axis.set_ylim(rows.stop - rows.start - 0.5, -0.5)
    for edge in axis.spines.values():
        edge.set_visible(False)
