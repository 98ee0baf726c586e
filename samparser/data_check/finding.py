"""What a check notes of one image, so that the image itself can be forgotten."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from samparser.data.dataset import SegmentationDataset
from samparser.data.sample import DataError, Skipped


@dataclass(frozen=True)
class Finding:
    """One image that was read, or could not be.

    Attributes:
        part: Its split.
        index: Its place there.
        name: Its name.
        error: Why it cannot be read; None where it can.
        skipped: What was left out of it.
        pixels: SHA-1 of its pixels.
        height: In pixels.
        width: In pixels.
        areas: Of its instances, in pixels.
        sides: The shorter sides of their boxes, in pixels.
        class_ids: Their classes.
        rectangles: How many of them fill their box.
        repeated: How many are the same as another one, pixel by pixel.
    """

    part: str
    index: int
    name: str
    error: str | None = None
    skipped: list[Skipped] = field(default_factory=list)
    pixels: bytes = b""
    height: int = 0
    width: int = 0
    areas: list[int] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    rectangles: int = 0
    repeated: int = 0


def find(part: str, dataset: SegmentationDataset, index: int) -> Finding:
    """Read one image of a split."""
    try:
        sample, skipped = dataset.examine(index)
    except DataError as error:
        return Finding(part, index, dataset.names[index], str(error))
    height, width = sample.size
    areas = [instance.area for instance in sample.instances]
    boxes = [instance.box for instance in sample.instances]
    different = {(instance.box, instance.mask.tobytes()) for instance in sample.instances}
    return Finding(
        part,
        index,
        sample.name,
        skipped=skipped,
        pixels=hashlib.sha1(sample.image.tobytes()).digest(),
        height=height,
        width=width,
        areas=areas,
        sides=[min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes],
        class_ids=[instance.class_id for instance in sample.instances],
        rectangles=sum(instance.mask.size == area for instance, area in zip(sample.instances, areas, strict=True)),
        repeated=len(areas) - len(different),
    )
