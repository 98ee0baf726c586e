"""Masks as files: label PNG, overlay PNG, COCO JSON with run-length encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samparser._extras import require
from samparser._files import replacing

from .cropped_mask import CroppedMask, cropped


class SegmentedImage(NamedTuple):
    """The masks of one image as a COCO file lists them.

    Attributes:
        file_name: As it shall stand in the file.
        masks: bool (N, H, W), or cropped masks.
        scores: One number per mask, or None.
        class_ids: One class per mask; None makes all of them class 1.
        size: (H, W) of the image; None takes that of `masks` as an array.
    """

    file_name: str
    masks: np.ndarray | Sequence[CroppedMask]
    scores: Sequence[float] | None = None
    class_ids: Sequence[int] | None = None
    size: tuple[int, int] | None = None


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write uint8 RGB (H, W, 3) or grey (H, W), 8 or 16 bits, in the format of the suffix; whole or not at all."""
    pillow = require("PIL.Image", "Writing images")
    with replacing(path) as temporary:
        pillow.fromarray(image).save(temporary)


def write_label_png(
    masks: np.ndarray | Sequence[CroppedMask], path: str | Path, size: tuple[int, int] | None = None
) -> None:
    """Write masks as one grey PNG: 0 is background, mask number i has the value i + 1.

    8 bits for up to 255 masks, 16 bits above. A pixel has one value only: where masks overlap, the smaller one wins.
    The COCO file keeps overlapping masks apart.

    Args:
        masks: bool (N, H, W), or cropped masks.
        path: Ends in .png.
        size: (H, W) of the image; None takes that of `masks` as an array.

    Raises:
        ValueError: More than 65,535 masks, or another suffix.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"Label images are PNG, which loses nothing; got {path}.")
    if len(masks) > 65535:
        raise ValueError(f"A 16-bit PNG holds 65535 labels; got {len(masks)} masks.")
    kept = cropped(masks)
    labels = np.zeros(_size(masks, size), dtype=np.uint8 if len(masks) <= 255 else np.uint16)
    for number in sorted(range(len(kept)), key=lambda number: -kept[number].area):
        kept[number].paste(labels, number + 1)
    write_image(labels, path)


def write_coco(path: str | Path, images: Iterable[SegmentedImage], classes: Mapping[int, str] | None = None) -> None:
    """Write a COCO data set of masks: one annotation per mask in the order given, empty masks with area 0 included.

    Boxes are COCO's (x, y, width, height). Image and annotation ids count from 1. The file appears whole or not at all.

    Args:
        path: The JSON file.
        images: Taken one at a time and written at once, so their number takes no memory.
        classes: Names by class id; None means one class, "object", with id 1.

    Raises:
        ImportError: pycocotools is missing.
    """
    require("pycocotools.mask", "Run-length encoding")
    categories = [{"id": key, "name": name} for key, name in (classes or {1: "object"}).items()]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        records: list[dict[str, Any]] = []
        number = 0
        for segmented in images:
            height, width = _size(segmented.masks, segmented.size)
            image_id = len(records) + 1
            records.append({"id": image_id, "file_name": segmented.file_name, "width": width, "height": height})
            for annotation in _annotations(segmented):
                number += 1
                file.write(",\n" if number > 1 else "\n")
                file.write(json.dumps({"id": number, "image_id": image_id, **annotation}))
        file.write(f'\n],\n"images": {json.dumps(records)}}}\n')


def _annotations(segmented: SegmentedImage) -> Iterable[dict[str, Any]]:
    from samparser.data.readers.segmentations import mask_rle

    for number, mask in enumerate(cropped(segmented.masks)):
        x0, y0, x1, y1 = mask.box
        annotation = {
            "category_id": int(segmented.class_ids[number]) if segmented.class_ids is not None else 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": mask.area,
            "iscrowd": 0,
            "segmentation": mask_rle(mask.mask, (x0, y0), mask.size),
        }
        if segmented.scores is not None:
            annotation["score"] = float(segmented.scores[number])
        yield annotation


def _size(masks: np.ndarray | Sequence[CroppedMask], size: tuple[int, int] | None) -> tuple[int, int]:
    if size is not None:
        return size
    if isinstance(masks, np.ndarray):
        return masks.shape[1], masks.shape[2]
    if not masks:
        raise ValueError("Without a mask the size of the image has to be given.")
    return masks[0].size
