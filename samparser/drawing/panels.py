"""Comparison panels: image, ground truth, and the masks that each model predicts, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samparser._words import count
from samparser.scoring import InstanceScore, ScoreTable

from .figures import new_figure, save_picture
from .overlays import overlay


class Panel(NamedTuple):
    """One row of a figure: an image and what was predicted for it.

    Attributes:
        image: uint8 RGB (H, W, 3).
        truth: bool (N, H, W).
        predictions: Masks (N, H, W) by the name of the model, in the order to draw; mask i belongs to truth i.
        title: Written left of the row.
    """

    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    title: str = ""


def side_by_side(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    title: str = "",
    zoom: bool = True,
) -> Path:
    """Draw an image, its true masks and the masks of one or several models beside each other.

    Each instance has one colour in all panels. On the predictions the truth is outlined, and their titles give the
    mean IoU over the instances.

    Args:
        image: uint8 RGB (H, W, 3).
        truth: bool (N, H, W).
        predictions: bool (N, H, W) by name, in the order of the truth, for instance {"zero-shot": ..., "tuned": ...}.
        path: File to write; the suffix chooses the format (.png, .pdf, .svg).
        title: Written left of the panels, for instance the image's name.
        zoom: Show only the part of the image that holds all masks, where that is much smaller; the heading says so.

    Returns:
        The path written.

    Raises:
        ValueError: Masks are not bool of the image's size, or not one per instance.
        ImportError: matplotlib is missing.
    """
    return draw_panels([Panel(image, truth, predictions, title)], path, zoom=zoom)


def draw_panels(rows: Sequence[Panel], path: str | Path, *, zoom: bool = True) -> Path:
    """Draw several rows as `side_by_side` draws one, for instance the best, the median and the worst image.

    Args:
        rows: From top to bottom; all of them with the same models.
        path: File to write; the suffix chooses the format.
        zoom: See `side_by_side`.

    Returns:
        The path written.

    Raises:
        ValueError: There is no row, rows differ in the models, or masks do not fit their image.
    """
    _check(rows)
    names = list(rows[0].predictions)
    columns = 2 + len(names)
    width = 3.2
    views = [_view(row) if zoom else (slice(None), slice(None)) for row in rows]
    parts = [row.image[view] for row, view in zip(rows, views, strict=True)]
    heights = [width * part.shape[0] / part.shape[1] for part in parts]
    margin = 0.35 if any(row.title for row in rows) else 0.05
    figure = new_figure(columns * width + margin, sum(heights) + 0.36 * len(rows) + 0.25)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, view, part, axis in zip(rows, views, parts, axes, strict=True):
        truth = row.truth[:, *view]
        _draw(axis[0], part, "image" if part.shape == row.image.shape else "image (part)")
        _draw(axis[1], overlay(part, truth), f"ground truth ({count(len(truth), 'object')})")
        for name, panel in zip(names, axis[2:], strict=True):
            masks = row.predictions[name]
            picture = overlay(part, masks[:, *view], outlines=truth)
            _draw(panel, picture, f"{name}: mean IoU {percent_iou(row.truth, masks)}")
        axis[0].set_ylabel(row.title, fontsize=11 if len(row.title) < 24 else 8)
    legend = "an object has the same colour in all panels; thin outline on a prediction: its ground truth"
    figure.supxlabel(legend, fontsize=9, color="#444444")
    return save_picture(figure, path)


def best_median_worst(table: ScoreTable) -> dict[str, str]:
    """Return the names of the best, the median and the worst image of a table, by mean IoU over the image's instances.

    The median is the lower of the two middle images; equal scores go by name. One image serves as all three.

    Raises:
        ValueError: The table has no scored image.
    """
    scores = table.image_scores()
    if not scores:
        raise ValueError("The table has no scored image to pick from.")
    ranked = sorted(scores, key=lambda name: (scores[name][0], name))
    return {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def _view(row: Panel) -> tuple[slice, slice]:
    """Return the rows and columns that hold all masks, with a margin of a tenth, and at least 64 pixels each way.

    The whole image, where that would cut off little.
    """
    from samparser.data.sample import tight_box

    covered = np.zeros(row.image.shape[:2], dtype=bool)
    for masks in (row.truth, *row.predictions.values()):
        covered |= masks.any(axis=0)
    whole = (slice(None), slice(None))
    box = tight_box(covered)
    if box is None:
        return whole
    rows, columns = _range(box[1], box[3], row.image.shape[0]), _range(box[0], box[2], row.image.shape[1])
    # A narrow strip would take a page to draw: its short side is widened.
    height, width = rows.stop - rows.start, columns.stop - columns.start
    all_rows, all_columns = row.image.shape[:2]
    part = _widened(rows, width // 2, all_rows), _widened(columns, int(height / 1.25), all_columns)
    return part if covered[part].size < 0.7 * covered.size else whole


def _widened(part: slice, least: int, length: int) -> slice:
    """Return the slice with at least so many places, as far as there are, spread evenly to both sides."""
    missing = max(0, min(least, length) - (part.stop - part.start))
    start = min(max(0, part.start - missing // 2), length - (part.stop - part.start) - missing)
    return slice(start, start + part.stop - part.start + missing)


def _range(first: int, last: int, length: int) -> slice:
    margin = max(8, (last - first) // 10, (64 - (last - first)) // 2)
    return slice(max(0, first - margin), min(length, last + margin))


def _draw(axis: Any, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest" if max(picture.shape) < 256 else "antialiased")
    axis.set_title(title, fontsize=11)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def percent_iou(truth: np.ndarray, masks: np.ndarray) -> str:
    """Return the mean IoU of masks (N, H, W) with the truth, in per cent, as it is written beside a picture."""
    scores = []
    for number, (true, mask) in enumerate(zip(truth, masks, strict=True)):
        area, predicted, common = (int(np.count_nonzero(part)) for part in (true, mask, true & mask))
        scores.append(InstanceScore("", str(number), 0, area, predicted, common))
    mean = ScoreTable(scores).miou
    return "undefined" if np.isnan(mean) else f"{100 * mean:.1f} %"


def _check(rows: Sequence[Panel]) -> None:
    if not rows:
        raise ValueError("There is nothing to draw: give at least one row.")
    for row in rows:
        if list(row.predictions) != list(rows[0].predictions):
            raise ValueError(
                f"All rows need the same models in the same order; got {list(rows[0].predictions)} and "
                f"{list(row.predictions)}."
            )
        for name, masks in {"ground truth": row.truth, **row.predictions}.items():
            expected = (len(row.truth), *row.image.shape[:2])
            if np.shape(masks) != expected or np.asarray(masks).dtype != np.bool_:
                raise ValueError(
                    f"The masks of {name!r} are {np.asarray(masks).dtype} {np.shape(masks)}; drawing needs bool "
                    f"{expected}, one mask of the image's size per instance."
                )
