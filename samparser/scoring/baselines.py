"""Trivial baselines: masks that need no model, only the box, and that a segmenter has to be better than."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def box_masks(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill each box.

    Args:
        boxes: (N, 4), x0, y0, x1, y1 in pixels of the image; x1 and y1 lie behind the last pixel.
        size: Height and width of the image.

    Returns:
        bool (N, H, W): the pixels whose centre lies in the box.
    """
    return _filled(boxes, size, lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 1)


def ellipse_masks(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill the ellipse inscribed in each box; arguments and result as in `box_masks`.

    >>> ellipse_masks(np.array([[0, 0, 4, 3]]), (3, 5))[0].astype(int)
    array([[0, 1, 1, 0, 0],
           [1, 1, 1, 1, 0],
           [0, 1, 1, 0, 0]])
    """
    return _filled(boxes, size, lambda x, y: x**2 + y**2 <= 1)


def _filled(
    boxes: np.ndarray, size: tuple[int, int], inside: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Ask `inside` of pixel centres, given from -1 to 1 across the box; only within the box, which may be small."""
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, np.asarray(boxes, dtype=float), strict=True):
        if x1 <= x0 or y1 <= y0:
            continue
        left, top = max(0, int(x0)), max(0, int(y0))
        part = mask[top : int(np.ceil(y1)), left : int(np.ceil(x1))]
        y, x = np.mgrid[: part.shape[0], : part.shape[1]] + 0.5
        part[:] = inside((x + left - (x0 + x1) / 2) * 2 / (x1 - x0), (y + top - (y0 + y1) / 2) * 2 / (y1 - y0))
    return masks
