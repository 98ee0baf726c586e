"""Coordinates of prompts: box jitter, and points on a mask.

Coordinates are (x, y), x to the right and y down; boxes are (x0, y0, x1, y1), half-open: the last column is x1 - 1.
"Original frame" means pixels of the image; "input frame" means pixels of the square that the model takes, which is
where it wants its prompts: `samparser.sam.Frame` brings them there. Every function says which frame it works in; those
that say "any frame" give back the frame they were given.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from samparser._extras import require


def jitter_boxes(
    boxes: np.ndarray,
    size: tuple[int, int],
    low: float,
    high: float,
    rng: np.random.Generator,
    *,
    direction: Literal["outward", "both"] = "outward",
    max_fraction: float | None = None,
) -> np.ndarray:
    """Move each side of each box by a distance drawn uniformly from [low, high] pixels, in any frame.

    The result lies inside the image and never loses its order: an inward move stops where, with the opposite side
    moved just as far, one pixel of the box would be left.

    Args:
        boxes: (N, 4).
        size: (height, width) of the frame that the boxes are in.
        low: Shortest move in pixels of that frame.
        high: Longest move.
        rng: Source of the randomness; it is drawn from in the order of the boxes.
        direction: "outward" makes boxes larger only, as MedSAM does, whose perturbation SAM-PARSER takes over; "both"
            moves each side outward or inward with equal chance.
        max_fraction: No side moves further than this part of the box's own width (left, right) or height (top, bottom).

    Returns:
        float32 (N, 4).
    """
    if not 0 <= low <= high:
        raise ValueError(f"The jitter must be 0 <= low <= high pixels, got low = {low}, high = {high}.")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    height, width = size
    extent = np.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], axis=1)[:, [0, 1, 0, 1]]
    move = rng.uniform(low, high, boxes.shape)
    if direction == "both":
        inward = rng.random(boxes.shape) < 0.5
        move = np.where(inward, -np.minimum(move, np.maximum(extent - 1, 0) / 2), move)
    if max_fraction is not None:
        move = np.clip(move, -max_fraction * extent, max_fraction * extent)
    moved = boxes + move * np.array([-1, -1, 1, 1])
    return np.clip(moved, 0, [width, height, width, height]).astype(np.float32)


def inside_point(mask: np.ndarray) -> np.ndarray:
    """Return the centre of the pixel of `mask` that lies furthest from its border, in the mask's own frame.

    The image's edge counts as border. Of several such pixels it is the first in reading order.

    Args:
        mask: bool (H, W), not empty.

    Returns:
        float32 (2,): (x, y).
    """
    ndimage = require("scipy.ndimage", "The point inside a mask")
    if not mask.any():
        raise ValueError("The mask is empty, so no point is inside it.")
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(distance)), mask.shape)
    return np.array([x + 0.5, y + 0.5], dtype=np.float32)


def random_points(mask: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the centres of `n` pixels of `mask` drawn at random, in the mask's own frame.

    Drawn without replacement while the mask has enough pixels, otherwise with.

    Args:
        mask: bool (H, W), not empty.
        n: How many points.
        rng: Source of the randomness.

    Returns:
        float32 (n, 2): (x, y).
    """
    pixels = np.flatnonzero(mask)
    if len(pixels) == 0:
        raise ValueError("The mask is empty, so no point is inside it.")
    rows, columns = np.unravel_index(rng.choice(pixels, size=n, replace=len(pixels) < n), mask.shape)
    return np.stack([columns + 0.5, rows + 0.5], axis=1).astype(np.float32)
