"""Shapes that labelling tools know besides polygons, as masks on the image."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from .segmentations import FAR, BadMask, polygon_mask


def numbers(values: Iterable[Any], what: str, far: float = math.inf) -> list[float]:
    """Return values as finite numbers, none further from 0 than `far`.

    Args:
        values: Numbers, or texts of them.
        what: The shape, for the message: `ellipse`.
        far: The largest magnitude.

    Raises:
        BadMask: One is something else.
    """
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise BadMask(f"{what} with something that is not a number") from None
    if not all(math.isfinite(value) for value in found):
        raise BadMask(f"{what} with a number that is not finite")
    if any(abs(value) > far for value in found):
        raise BadMask(f"{what} far outside of the image")
    return found


def outline_mask(points: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Return a polygon of (x, y) points in pixels as bool (height, width), drawn as COCO's own tools draw it."""
    flat = [value for point in points for value in point]
    return polygon_mask([flat], height, width, in_pixels=True)


def rectangle_mask(
    box: Iterable[Any], height: int, width: int, degrees: Any = 0, pivot: tuple[float, float] | None = None
) -> np.ndarray:
    """Return a rectangle as bool (height, width).

    Args:
        box: (x0, y0, x1, y1) in pixels before it is turned.
        height: Of the image.
        width: Of the image.
        degrees: How far it is turned, clockwise as one sees it.
        pivot: What it is turned about, (x, y); its middle if not given.
    """
    x0, y0, x1, y1 = numbers(box, "rectangle", FAR * max(height, width))
    (angle,) = numbers([degrees], "rectangle")
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    about = ((x0 + x1) / 2, (y0 + y1) / 2) if pivot is None else pivot
    return outline_mask(turned(corners, about, angle) if angle else corners, height, width)


def turned(points: list[tuple[float, float]], about: tuple[float, float], degrees: float) -> list[tuple[float, float]]:
    """Return points turned about one of them, clockwise as one sees it (y goes down)."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    (cx, cy) = about
    return [(cx + (x - cx) * cosine - (y - cy) * sine, cy + (x - cx) * sine + (y - cy) * cosine) for x, y in points]


def ellipse_mask(middle: Iterable[Any], radii: Iterable[Any], height: int, width: int, degrees: Any = 0) -> np.ndarray:
    """Return an ellipse as bool (height, width): the pixels whose middle is inside.

    Args:
        middle: (x, y) in pixels.
        radii: (x, y) in pixels, before it is turned.
        height: Of the image.
        width: Of the image.
        degrees: How far it is turned, clockwise as one sees it.
    """
    cx, cy, rx, ry = numbers([*middle, *radii], "ellipse", FAR * max(height, width))
    (angle,) = numbers([degrees], "ellipse")
    if rx <= 0 or ry <= 0:
        raise BadMask("ellipse without a size")
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = np.arange(width)[None] + 0.5 - cx, np.arange(height)[:, None] + 0.5 - cy
    mask: np.ndarray = ((x * cosine + y * sine) / rx) ** 2 + ((y * cosine - x * sine) / ry) ** 2 <= 1
    return mask


def placed(crop: np.ndarray, left: int, top: int, height: int, width: int) -> np.ndarray:
    """Return a bool mask (h, w), whose top left pixel is (left, top), as bool (height, width), cut at the edges."""
    mask = np.zeros((height, width), dtype=bool)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + crop.shape[1], width), min(top + crop.shape[0], height)
    if x0 < x1 and y0 < y1:
        mask[y0:y1, x0:x1] = crop[y0 - top : y1 - top, x0 - left : x1 - left]
    return mask
