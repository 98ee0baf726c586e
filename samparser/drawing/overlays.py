"""Mask overlays: masks drawn over their image, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .palette import instance_colour, rgb


def overlay(
    image: np.ndarray,
    masks: np.ndarray | Sequence[np.ndarray],
    *,
    opacity: float = 0.45,
    line: int | None = None,
    outlines: Iterable[np.ndarray] | None = None,
) -> np.ndarray:
    """Return the image with each mask filled in a colour of its own and outlined.

    Mask number i has the same colour in every overlay, so pictures of the same instances can be compared. Where masks
    overlap, the smaller one is on top.

    Args:
        image: uint8 RGB (H, W, 3).
        masks: bool (N, H, W).
        opacity: Of the fill, from 0 to 1; outlines are opaque.
        line: Width of the outlines in pixels; None takes 1 per 400 pixels of the image's longer side.
        outlines: Masks (M, H, W) whose outlines are drawn over everything, white on dark and black on bright ground,
            for instance the truth over a prediction.

    Returns:
        uint8 RGB (H, W, 3).
    """
    picture = image.astype(np.float32)
    line = line or max(1, round(max(image.shape[:2]) / 400))
    numbers = sorted(range(len(masks)), key=lambda number: -int(np.count_nonzero(masks[number])))
    for number in numbers:
        mask, colour = masks[number], rgb(instance_colour(number))
        picture[mask] = (1 - opacity) * picture[mask] + opacity * colour
        picture[border(mask, line)] = colour
    for mask in outlines if outlines is not None else ():
        edge = border(mask, line)
        if edge.any():
            picture[edge] = 255 if picture[edge].mean() < 150 else 0
    return picture.round().astype(np.uint8)


def border(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Return the pixels of a bool mask (H, W) within `width` steps of the outside; the image's edge is no outside."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
