"""Validation of prompts: boxes and points in pixels of the original image, or a guess of the frame they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from samparser.sam.frame import Frame

# Annotation tools round outwards: boxes that end a pixel outside the image are common and harmless.
_MARGIN = 1.0
# Longest side of the input of the published SAMs, in whose frame many scripts write boxes.
_PUBLISHED = 1024


def check_image(image: Any) -> np.ndarray:
    """Return the image as uint8 RGB (H, W, 3).

    Raises:
        ValueError: It has another type or layout; the message names the conversion to make.
    """
    image = np.asarray(image)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    if image.dtype != np.uint8:
        advice = "scale it to 0..255 and convert: (image * 255).astype('uint8') for values from 0 to 1."
    elif image.ndim == 2:
        advice = "for a grey image repeat it: numpy.stack([image] * 3, axis=-1)."
    elif image.ndim == 3 and image.shape[0] == 3:
        advice = "the channels come last: image.transpose(1, 2, 0)."
    elif image.ndim == 3 and image.shape[2] == 4:
        advice = "drop the alpha channel: image[..., :3]."
    else:
        advice = "give one image at a time."
    raise ValueError(f"The image must be uint8 RGB of shape (H, W, 3); got {image.dtype} {image.shape}: {advice}")


def check_boxes(boxes: Any, size: tuple[int, int], frame: Frame) -> np.ndarray:
    """Return boxes as float32 (N, 4) in pixels of the original frame.

    Args:
        boxes: (N, 4) of (x0, y0, x1, y1).
        size: (H, W) of the original image.
        frame: The model's input frame, to recognise boxes given in it.

    Raises:
        ValueError: Wrong shape, not finite, empty or inverted, outside the image, or from 0 to 1. The message names
            the frame or format that the boxes seem to be in, where that can be told.
    """
    boxes = np.asarray(boxes, dtype=np.float32)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), one row (x0, y0, x1, y1) per object; got {boxes.shape}.")
    _check_finite(boxes, "boxes")
    height, width = size
    x0, y0, x1, y1 = boxes.T
    inverted = (x1 <= x0) | (y1 <= y0)
    if boxes.max() <= 1.0 and boxes.min() >= 0.0 and max(size) > 2 and (boxes != np.rint(boxes)).any():
        raise ValueError(
            f"All boxes lie from 0 to 1 (first {_row(boxes[0])}): they look normalised. Boxes are in pixels of the "
            f"original image: multiply x by its width {width} and y by its height {height}."
        )
    outside = _outside(boxes, width, height)
    if not (inverted | outside).any():
        return boxes
    first = int(np.flatnonzero(inverted | outside)[0])
    what = "is empty or inverted (x1 <= x0 or y1 <= y0)" if inverted[first] else "is outside the image"
    corners = np.stack([x0, y0, x0 + x1, y0 + y1], axis=1)
    swapped = boxes[:, [1, 0, 3, 2]]
    # Judged over all boxes, so that a single slip is not taken for another format.
    if inverted.mean() > 0.2 and (boxes[:, 2:] > 0).all() and not _outside(corners, width, height).any():
        hint = " They look like COCO's (x, y, width, height): pass (x, y, x + width, y + height)."
    elif not inverted.any() and max(size) < frame.size and boxes.max() <= frame.size + _MARGIN:
        hint = (
            f" They would fit the model's resized input (longest side {frame.size}): give pixels of the original "
            "image, the resizing is done here."
        )
    elif not inverted.any() and not _outside(swapped, width, height).any():
        hint = " They would fit with x and y exchanged: the order is (x0, y0, x1, y1)."
    elif not inverted.any() and max(size) < _PUBLISHED and max(size) < boxes.max() <= _PUBLISHED + _MARGIN:
        hint = (
            f" They would fit the input of the published SAMs (longest side {_PUBLISHED}): give pixels of the original "
            "image, the resizing is done here."
        )
    else:
        hint = ""
    raise ValueError(
        f"Box {first} of {len(boxes)}, {_row(boxes[first])}, {what} of {width} x {height} (width x height) pixels. "
        f"Boxes are (x0, y0, x1, y1) in pixels of the original image.{hint}"
    )


def check_points(points: Any, labels: Any, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return points as float32 (N, P, 2) in pixels of the original frame, and their labels as int64 (N, P).

    Args:
        points: (N, 2), one (x, y) per object; or (N, P, 2), P points per object; or a list of N arrays (P_n, 2).
        labels: 1 on the object, 0 off it, in the shape of the points without the last axis; None means all 1.
            Rows are padded with the label -10, which SAM ignores.
        size: (H, W) of the original image.

    Raises:
        ValueError: Shapes do not fit, labels are others, or points lie outside the image or from 0 to 1.
    """
    rows = [np.asarray(row, dtype=np.float32) for row in points]
    rows = [row[None] if row.ndim == 1 else row for row in rows]
    if any(row.ndim != 2 or row.shape[1] != 2 or len(row) == 0 for row in rows):
        raise ValueError(
            "points must be (N, 2), one (x, y) per object, or (N, P, 2), or a list of (P, 2) per object; got shapes "
            f"{sorted({row.shape for row in rows})} for the objects."
        )
    if labels is None:
        marks = [np.ones(len(row), dtype=np.int64) for row in rows]
    else:
        marks = [np.atleast_1d(np.asarray(row)).astype(np.int64) for row in labels]
    if [len(row) for row in rows] != [len(row) for row in marks]:
        raise ValueError(
            f"labels must give one number per point: the objects have {[len(row) for row in rows][:8]} points and "
            f"{[len(row) for row in marks][:8]} labels."
        )
    if not rows:
        return np.zeros((0, 1, 2), np.float32), np.zeros((0, 1), np.int64)
    every, height, width = np.concatenate(rows), *size
    _check_finite(every, "points")
    if unknown := sorted({int(mark) for row in marks for mark in row} - {0, 1}):
        raise ValueError(f"labels must be 1 (on the object) or 0 (off it); got {unknown}.")
    if every.max() <= 1.0 and every.min() >= 0.0 and max(size) > 2 and (every != np.rint(every)).any():
        raise ValueError(
            f"All points lie from 0 to 1 (first {_row(every[0])}): they look normalised. Points are (x, y) in pixels "
            f"of the original image: multiply x by its width {width} and y by its height {height}."
        )
    outside = (every < -_MARGIN).any(axis=1) | (every > np.array([width, height]) + _MARGIN).any(axis=1)
    if outside.any():
        exchanged = (every >= 0).all() and (every[:, ::-1] <= np.array([width, height])).all()
        hint = " They would fit with x and y exchanged." if exchanged else ""
        raise ValueError(
            f"The point {_row(every[outside][0])} is outside the image of {width} x {height} (width x height) pixels. "
            f"Points are (x, y) in pixels of the original image.{hint}"
        )
    longest = max(len(row) for row in rows)
    padded = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])
    marked = np.stack([np.pad(row, (0, longest - len(row)), constant_values=-10) for row in marks])
    return padded, marked


def _outside(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    limit = np.array([width, height, width, height]) + _MARGIN
    return np.asarray(((boxes < -_MARGIN) | (boxes > limit)).any(axis=1))


def _check_finite(values: np.ndarray, name: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite; row {int(np.argwhere(~np.isfinite(values))[0][0])} is not.")


def _row(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
