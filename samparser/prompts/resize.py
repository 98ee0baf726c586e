"""Antialiased resizing of masks from the original frame to the input frame, faithful to their area."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from samparser._extras import require

if TYPE_CHECKING:
    from samparser.data.sample import Instance


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) at `size` = (height, width): True where an antialiased bilinear resize is at least half."""
    height, width = size
    return _coverage(mask, (width, height), (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]))) >= 128


def resize_instance(
    instance: Instance, original_size: tuple[int, int], resized: tuple[int, int], out: np.ndarray
) -> None:
    """Write an instance's mask in the input frame into `out`: `resize_mask` of the full mask, at the box's cost.

    An instance too small to cover half of any pixel becomes the pixel that it covers most, so that none is lost.

    Args:
        instance: In the original frame.
        original_size: (height, width) of the image.
        resized: (height, width) of the image in the input frame.
        out: bool (height, width) or larger, False on entry.
    """
    x0, y0, x1, y1 = instance.box
    across = _Axis(x0, x1, original_size[1], resized[1])
    down = _Axis(y0, y1, original_size[0], resized[0])
    window = np.pad(instance.mask, ((y0 - down.low, down.high - y1), (x0 - across.low, across.high - x1)))
    coverage = _coverage(
        window,
        (across.stop - across.start, down.stop - down.start),
        (across.begin, down.begin, across.end, down.end),
    )
    inside = coverage >= 128
    if not inside.any():
        inside = np.zeros_like(inside)
        inside[np.unravel_index(int(np.argmax(coverage)), coverage.shape)] = True
    out[down.start : down.stop, across.start : across.stop] = inside


class _Axis:
    """Along one side: which output pixels the box reaches, and which window of the original they are made from.

    Attributes:
        start, stop: Output pixels.
        low, high: Original pixels of the window, wide enough for the filter at both ends.
        begin, end: Where the output pixels begin and end, in pixels of the window.
    """

    def __init__(self, low: int, high: int, original: int, resized: int) -> None:
        scale = original / resized
        reach = math.ceil(max(scale, 1.0)) + 1
        self.start = max(0, math.floor((low - reach) / scale))
        self.stop = min(resized, math.ceil((high + reach) / scale))
        self.low = max(0, math.floor(self.start * scale) - reach)
        self.high = min(original, math.ceil(self.stop * scale) + reach)
        self.begin = self.start * scale - self.low
        self.end = min(self.stop * scale, original) - self.low


def _coverage(mask: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """Return 255 times the part of each output pixel that the mask covers, as uint8. `size` is (width, height)."""
    pillow = require("PIL.Image", "Resizing masks")
    picture = pillow.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, pillow.Resampling.BILINEAR, box=box))
