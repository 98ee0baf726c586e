"""Segmentations as annotation files write them, as masks."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FAR = 16  # times the image's longer side; pycocotools crashes on points a few million pixels away
LONGEST = 5_000_000  # pixels of outline; pycocotools takes 47 bytes for each


class BadMask(ValueError):  # noqa: N818 - never leaves the readers, which turn it into a reason for skipping
    """A segmentation that cannot be drawn; the message is the reason."""


class NormalisedPolygon(BadMask):
    """A polygon whose coordinates are parts of the image's width and height; COCO's are pixels."""


def polygon_mask(polygons: list[Any], height: int, width: int, *, in_pixels: bool = False) -> np.ndarray:
    """Return the union of polygons as bool (height, width), drawn as COCO's own tools draw them.

    Args:
        polygons: Each a flat list x0, y0, x1, y1, ... of at least three points, in pixels of the image. Parts outside
            of the image are cut off.
        height: Of the image.
        width: Of the image.
        in_pixels: It is known that the coordinates are pixels. Otherwise a polygon with all of them between 0 and 1 is
            refused as a normalised one.
    """
    drawable = []
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) % 2:
            raise BadMask("polygon that is not a list of x, y pairs")
        if len(polygon) < 6:
            continue
        try:
            points = [float(value) for value in polygon]
        except (TypeError, ValueError, OverflowError):
            raise BadMask("polygon with something that is not a number") from None
        if not all(math.isfinite(value) for value in points):
            raise BadMask("polygon with a number that is not finite")
        if max(abs(value) for value in points) > FAR * max(height, width):
            raise BadMask("polygon far outside of the image")
        drawable.append(points)
    if not drawable:
        raise BadMask("polygon with fewer than three points")
    if (
        not in_pixels
        and all(-0.5 <= value <= 1.5 for points in drawable for value in points)
        and max(height, width) > 4
    ):
        raise NormalisedPolygon("polygon with all coordinates between 0 and 1")
    if sum(_length(points) for points in drawable) > LONGEST:
        raise BadMask(f"polygon whose outline is longer than {LONGEST:,} px")
    encoded = coco_mask.merge(coco_mask.frPyObjects(drawable, height, width))
    return coco_mask.decode(encoded).astype(bool)


def _length(points: list[float]) -> float:
    """Return the length of a polygon's outline, with each side counted by its longer axis, as it is drawn."""
    corners = np.array(points).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def rle_counts(text: str) -> np.ndarray:
    """Return the run lengths in COCO's compressed string: int64 (R,).

    Each character carries five bits and a flag that more follow; the last one's sign bit extends. From the fourth run
    on, what is written is the difference to the run two places before.
    """
    code = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if len(code) == 0 or code.min() < 0 or code.max() > 63 or code[-1] & 0x20:
        raise BadMask("run-length encoding that does not decode")
    ends = np.flatnonzero((code & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(code)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 8:
        raise BadMask("run-length encoding that does not decode")
    counts = np.add.reduceat((code & 0x1F) << (5 * place), starts)
    counts -= np.where(code[ends] & 0x10, 1 << (5 * (ends - starts + 1)), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def rle_mask(rle: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Return a run-length encoding of COCO, compressed (a string) or not (a list of counts), as bool (height, width).

    Drawn here and not by pycocotools, which gives back uninitialised memory when the runs end before the image does.
    """
    try:
        size, counts = [int(side) for side in rle["size"]], rle["counts"]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadMask("run-length encoding without size and counts") from None
    if len(size) != 2:
        raise BadMask("run-length encoding without size and counts")
    if size != [height, width]:
        raise BadMask(f"run-length encoding of {size[1]} x {size[0]} px for an image of {width} x {height} px")
    if isinstance(counts, str):
        runs = rle_counts(counts)
    elif isinstance(counts, list) and all(isinstance(n, int) or (isinstance(n, float) and n == n // 1) for n in counts):
        if any(abs(count) > height * width for count in counts):
            raise BadMask("run-length encoding whose runs do not add up to the image")
        runs = np.array(counts, dtype=np.int64)
    else:
        raise BadMask("run-length encoding whose counts are neither a string nor a list of whole numbers")
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadMask("run-length encoding whose runs do not add up to the image")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(width, height).T


def mask_rle(mask: np.ndarray, offset: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return a bool mask (H, W) in COCO's compressed run-length encoding: `{"size": [H, W], "counts": text}`.

    Args:
        mask: The mask, or the part of it inside a box.
        offset: (x, y) of the part's top left pixel in the image.
        size: (height, width) of the image; None takes the mask for the whole image. Nothing of this size is made.
    """
    height, width = size or mask.shape
    (rows, columns), (x, y) = mask.shape, offset
    framed = np.zeros((columns, rows + 2), dtype=bool)
    framed[:, 1:-1] = mask.T
    column, row = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), rows + 1)
    places = (x + column) * height + y + row  # of pixels column by column, where runs of the mask begin and end in turn
    starts, ends = places[::2], places[1::2]
    apart = starts[1:] != ends[:-1]  # otherwise a run goes on at the top of the next column
    edges = np.zeros(2 * (apart.sum() + 1 if len(starts) else 0) + 2, dtype=np.int64)
    if len(starts):
        edges[1:-1:2] = starts[np.concatenate([[True], apart])]
        edges[2:-1:2] = ends[np.concatenate([apart, [True]])]
    edges[-1] = height * width
    counts = np.diff(edges).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts.pop()
    packed = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def annotation_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return COCO's segmentation field as bool (height, width).

    Raises:
        BadMask: It cannot be drawn.
    """
    if isinstance(segmentation, str) and segmentation[:1] in ("[", "{"):
        # Written by way of a table.
        with suppress(ValueError, RecursionError):
            segmentation = json.loads(segmentation)
    if isinstance(segmentation, dict):
        return rle_mask(segmentation, height, width)
    if isinstance(segmentation, list) and segmentation:
        # Some tools write a single polygon without the outer list, and points as pairs: [[x, y], [x, y], ...].
        polygons = segmentation if isinstance(segmentation[0], list | dict) else [segmentation]
        if isinstance(polygons[0], dict):
            raise BadMask("list of run-length encodings in one annotation")
        if len(polygons) > 2 and all(_is_pair(point) for point in polygons):
            polygons = [polygons]
        flat = [
            [value for point in polygon for value in point]
            if isinstance(polygon, list) and polygon and all(_is_pair(point) for point in polygon)
            else polygon
            for polygon in polygons
        ]
        return polygon_mask(flat, height, width)
    raise BadMask("no segmentation, only a box")


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and not any(isinstance(value, list) for value in point)
