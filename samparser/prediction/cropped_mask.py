"""A mask kept inside its box and packed, so that many masks of a large image stay small."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samparser.data.sample import tight_box


@dataclass(frozen=True)
class CroppedMask:
    """One mask. What is kept is about a hundredth of its box's pixels, for masks with smooth borders.

    Attributes:
        size: (H, W) of the image.
        box: (x0, y0, x1, y1) in pixels of the image, half-open and tight; four zeros for an empty mask.
        area: Number of pixels of the mask.
        packed: The mask inside the box, eight pixels a byte, compressed.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    area: int
    packed: bytes

    @classmethod
    def of(cls, mask: np.ndarray, offset: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> CroppedMask:
        """Keep a bool mask (H, W), or a part of it that holds all of it.

        Args:
            mask: The mask or its part.
            offset: (x, y) of the part's top left pixel in the image.
            size: (H, W) of the image; None takes the mask for the whole image.
        """
        box, (x, y) = tight_box(mask), offset
        height, width = size or mask.shape
        if box is None:
            return cls((height, width), (0, 0, 0, 0), 0, b"")
        left, top, right, bottom = box
        inside = mask[top:bottom, left:right]
        packed = zlib.compress(np.packbits(inside).tobytes(), level=1)
        return cls((height, width), (left + x, top + y, right + x, bottom + y), int(np.count_nonzero(inside)), packed)

    @property
    def mask(self) -> np.ndarray:
        """The mask inside its box: bool (y1 - y0, x1 - x0)."""
        x0, y0, x1, y1 = self.box
        if not self.area:
            return np.zeros((0, 0), dtype=bool)
        bits = np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8)
        return np.unpackbits(bits, count=(y1 - y0) * (x1 - x0)).view(bool).reshape(y1 - y0, x1 - x0)

    def paste(self, plane: np.ndarray, value: object = True) -> None:
        """Write a value to the pixels of the mask in an array (H, W, ...)."""
        x0, y0, x1, y1 = self.box
        plane[y0:y1, x0:x1][self.mask] = value


def cropped(masks: np.ndarray | Sequence[CroppedMask]) -> list[CroppedMask]:
    """Return bool masks (N, H, W) as cropped ones; cropped ones as they are."""
    return [mask if isinstance(mask, CroppedMask) else CroppedMask.of(mask) for mask in masks]


def planes(masks: Iterable[CroppedMask], number: int, size: tuple[int, int]) -> np.ndarray:
    """Return cropped masks on the whole image, bool (N, H, W): N * H * W bytes.

    Args:
        masks: The masks, one after another.
        number: How many there are.
        size: (H, W) of the image.
    """
    whole = np.zeros((number, *size), dtype=bool)
    for plane, mask in zip(whole, masks, strict=True):
        mask.paste(plane)
    return whole
