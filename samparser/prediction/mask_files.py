"""Masks as files: label PNG, overlay PNG, COCO JSON with run-length encoding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samparser._extras import require
from samparser._files import replacing, write_text


class SegmentedImage(NamedTuple):
    """The masks of one image as a COCO file lists them.

    Attributes:
        file_name: As it shall stand in the file.
        masks: bool (N, H, W).
        scores: One number per mask, or None.
        class_ids: One class per mask; None makes all of them class 1.
    """

    file_name: str
    masks: np.ndarray
    scores: Sequence[float] | None = None
    class_ids: Sequence[int] | None = None


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write uint8 RGB (H, W, 3) or grey (H, W), 8 or 16 bits, in the format of the suffix; whole or not at all."""
    pillow = require("PIL.Image", "Writing images")
    with replacing(path) as temporary:
        pillow.fromarray(image).save(temporary)


def write_label_png(masks: np.ndarray, path: str | Path) -> None:
    """Write masks as one grey PNG: 0 is background, mask number i has the value i + 1.

    8 bits for up to 255 masks, 16 bits above. A pixel has one value only: where masks overlap, the smaller one wins.
    The COCO file keeps overlapping masks apart.

    Args:
        masks: bool (N, H, W).
        path: Ends in .png.

    Raises:
        ValueError: More than 65,535 masks, or another suffix.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"Label images are PNG, which loses nothing; got {path}.")
    if len(masks) > 65535:
        raise ValueError(f"A 16-bit PNG holds 65535 labels; got {len(masks)} masks.")
    labels = np.zeros(masks.shape[1:], dtype=np.uint8 if len(masks) <= 255 else np.uint16)
    for number in sorted(range(len(masks)), key=lambda number: -int(np.count_nonzero(masks[number]))):
        labels[masks[number]] = number + 1
    write_image(labels, path)


def coco_annotations(images: Iterable[SegmentedImage], classes: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Return a COCO data set of masks: one annotation per mask in the order given, empty masks included with area 0.

    Boxes are COCO's (x, y, width, height). Image and annotation ids count from 1.

    Args:
        images: Consumed one at a time; only the encodings are kept.
        classes: Names by class id; None means one class, "object", with id 1.
    """
    require("pycocotools.mask", "Run-length encoding")
    from samparser.data.readers.segmentations import mask_rle

    categories = [{"id": key, "name": name} for key, name in (classes or {1: "object"}).items()]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for image_id, segmented in enumerate(images, start=1):
        height, width = segmented.masks.shape[1:]
        content["images"].append({"id": image_id, "file_name": segmented.file_name, "width": width, "height": height})
        for number, mask in enumerate(segmented.masks):
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": int(segmented.class_ids[number]) if segmented.class_ids is not None else 1,
                "bbox": _coco_box(mask),
                "area": int(np.count_nonzero(mask)),
                "iscrowd": 0,
                "segmentation": mask_rle(mask),
            }
            if segmented.scores is not None:
                annotation["score"] = float(segmented.scores[number])
            content["annotations"].append(annotation)
    return content


def write_coco(path: str | Path, images: Iterable[SegmentedImage], classes: Mapping[int, str] | None = None) -> None:
    """Write `coco_annotations` as JSON; whole or not at all."""
    write_text(path, json.dumps(coco_annotations(images, classes)) + "\n")


def _coco_box(mask: np.ndarray) -> list[int]:
    from samparser.data.sample import tight_box

    x0, y0, x1, y1 = tight_box(mask) or (0, 0, 0, 0)
    return [x0, y0, x1 - x0, y1 - y0]
