"""What every reader hands out: an image with its instances, and what was left out on the way."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Something about a data set that its owner can put right; the message says what, where and how."""


class DataWarning(UserWarning):
    """Something about a data set that may be a mistake; reading goes on."""


def warn(text: str) -> None:
    """Warn of something about a data set; Python shows the same text once."""
    warnings.warn(text, DataWarning, stacklevel=3)


class Skipped(NamedTuple):
    """An image or an annotation that was left out.

    Attributes:
        where: The file or annotation, as the source names it.
        why: The reason, worded so that equal reasons can be counted.
    """

    where: str
    why: str


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the smallest box (x0, y0, x1, y1), half-open, around a bool mask (H, W), or None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class Instance:
    """One object. Its mask is kept cropped to its tight box, so that an image with many objects stays small.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the original frame (the image after EXIF rotation), half-open: the mask
            covers columns x0 .. x1 - 1 and rows y0 .. y1 - 1, and touches each side.
        mask: bool (y1 - y0, x1 - x0).
        class_id: Key into the data set's `classes`.
        id: As the source names it; unique within the image.
    """

    box: tuple[int, int, int, int]
    mask: np.ndarray
    class_id: int
    id: str

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.box
        if self.mask.dtype != np.bool_ or self.mask.shape != (y1 - y0, x1 - x0):
            raise ValueError(
                f"Instance {self.id}: the box {self.box} needs a bool mask of shape {(y1 - y0, x1 - x0)}, "
                f"got {self.mask.dtype} {self.mask.shape}. Instance.from_mask crops a mask to its tight box."
            )

    @classmethod
    def from_mask(cls, mask: np.ndarray, class_id: int, id: str, offset: tuple[int, int] = (0, 0)) -> Instance | None:
        """Return the instance of a bool mask (H, W) whose top left pixel is `offset` = (x, y); None if it is empty."""
        box = tight_box(mask)
        if box is None:
            return None
        (left, top, right, bottom), (x, y) = box, offset
        # A copy: a view would keep the whole image's mask alive.
        return cls((left + x, top + y, right + x, bottom + y), mask[top:bottom, left:right].copy(), class_id, id)

    @property
    def area(self) -> int:
        """The number of pixels of the mask."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its instances.

    Attributes:
        name: Unique in the data set: the image file's path relative to the data set's root, or for a slice of a
            volume the volume's path and the slice's number.
        image: uint8 RGB (H, W, 3).
        instances: In the order of the source.
        void: bool (H, W), True where nothing is known and losses and metrics look away; None if there is no such place.
        volume: Which volume a CT slice belongs to.
        slice_index: Which slice of the volume, counted from the feet (inferior) upwards.
    """

    name: str
    image: np.ndarray
    instances: tuple[Instance, ...]
    void: np.ndarray | None = None
    volume: str | None = None
    slice_index: int | None = None

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"{self.name}: the image must be uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}."
            )
        height, width = self.size
        for instance in self.instances:
            x0, y0, x1, y1 = instance.box
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise ValueError(
                    f"{self.name}: the box {instance.box} of instance {instance.id} is not inside the "
                    f"{width} x {height} image."
                )
        if self.void is not None and (self.void.dtype != np.bool_ or self.void.shape != self.size):
            raise ValueError(f"{self.name}: void must be bool {self.size}, got {self.void.dtype} {self.void.shape}.")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def boxes(self) -> np.ndarray:
        """Tight boxes: float32 (N, 4), (x0, y0, x1, y1) in pixels of the original frame, half-open."""
        return np.array([instance.box for instance in self.instances], dtype=np.float32).reshape(-1, 4)

    @property
    def masks(self) -> np.ndarray:
        """Masks on the whole image: bool (N, H, W). Made anew on each access; N * H * W bytes."""
        height, width = self.size
        masks = np.zeros((len(self.instances), height, width), dtype=bool)
        for mask, instance in zip(masks, self.instances, strict=True):
            x0, y0, x1, y1 = instance.box
            mask[y0:y1, x0:x1] = instance.mask
        return masks
