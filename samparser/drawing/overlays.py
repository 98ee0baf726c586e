"""Mask overlays: masks drawn over their image, with numpy alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from samparser.data.sample import tight_box

from .palette import instance_colour, rgb

_STRIP = 1 << 21  # pixels that are blended at a time


class MaskInBox(Protocol):
    """A mask that is kept inside its box, as `samparser.data.Instance` keeps it."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), half-open."""

    @property
    def mask(self) -> np.ndarray:
        """Bool (y1 - y0, x1 - x0)."""

    @property
    def area(self) -> int:
        """The number of pixels of the mask."""


def overlay(
    image: np.ndarray,
    masks: np.ndarray | Sequence[np.ndarray] | Sequence[MaskInBox],
    *,
    opacity: float = 0.45,
    line: int | None = None,
    outlines: Iterable[np.ndarray] | None = None,
) -> np.ndarray:
    """Return the image with each mask filled in a colour of its own and outlined.

    Mask number i has the same colour in every overlay, so pictures of the same instances can be compared. Where masks
    overlap, the smaller one is on top. Besides the picture, memory is taken by one mask at a time.

    Args:
        image: uint8 RGB (H, W, 3).
        masks: bool (N, H, W), or masks kept inside their boxes.
        opacity: Of the fill, from 0 to 1; outlines are opaque.
        line: Width of the outlines in pixels; None takes 1 per 400 pixels of the image's longer side.
        outlines: Masks (M, H, W) whose outlines are drawn over everything, white on dark and black on bright ground,
            for instance the truth over a prediction.

    Returns:
        uint8 RGB (H, W, 3).
    """
    picture = image.copy()
    line = line or max(1, round(max(image.shape[:2]) / 400))
    for number in sorted(range(len(masks)), key=lambda number: -_area(masks[number])):
        colour = rgb(instance_colour(number))
        blended = ((1 - opacity) * np.arange(256)[:, None] + opacity * colour).round().astype(np.uint8)
        for (rows, columns), mask, edge in _strips(masks[number], picture.shape[:2], line):
            for channel in range(3):  # by table: an array of the pixels inside, in float, takes ten times as long
                part = picture[rows, columns, channel]
                np.copyto(part, blended[:, channel][part], where=mask)
                np.copyto(part, colour[channel], where=edge)
    for mask in outlines if outlines is not None else ():
        edge = border(mask, line)
        if edge.any():
            picture[edge] = 255 if picture[edge].mean() < 150 else 0
    return picture


def _area(mask: np.ndarray | MaskInBox) -> int:
    return int(np.count_nonzero(mask)) if isinstance(mask, np.ndarray) else mask.area


def _strips(
    mask: np.ndarray | MaskInBox, size: tuple[int, int], line: int
) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Yield place, mask and border of a mask in strips from top to bottom."""
    if isinstance(mask, np.ndarray):
        box = tight_box(mask)
        if box is None:
            return
        (x0, y0, x1, y1), inside = box, mask[box[1] : box[3], box[0] : box[2]]
    else:
        (x0, y0, x1, y1), inside = mask.box, mask.mask
    # One pixel around the box, where there is one: what is outside of the box is outside of the mask.
    left, right = min(1, x0), min(1, size[1] - x1)
    step = max(1, _STRIP // max(1, x1 - x0))
    for start in range(y0, y1, step):
        stop = min(start + step, y1)
        top, bottom = max(start - line, y0), min(stop + line, y1)
        rows = inside[top - y0 : bottom - y0]
        above, below = int(top == y0 and y0 > 0), int(bottom == y1 and y1 < size[0])
        framed = np.pad(rows, ((above, below), (left, right)))
        edge = border(framed, line)[start - top + above :][: stop - start, left : left + x1 - x0]
        yield (slice(start, stop), slice(x0, x1)), inside[start - y0 : stop - y0], edge


def border(mask: np.ndarray, width: int = 1) -> np.ndarray:
    """Return the pixels of a bool mask (H, W) within `width` steps of the outside; the image's edge is no outside."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1, mode="edge")
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
