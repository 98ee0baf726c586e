"""COCO JSON: one file for each split, run lengths or polygons."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samparser._files import write_text

from ..readers.segmentations import mask_rle
from .outlines import outlines
from .writer import Record, Writer


class CocoWriter(Writer):
    """`annotations/instances_{split}.json`, or `annotations.json` for a set without a division, and `images/`."""

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self._images: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
        self._annotations: dict[str | None, list[dict[str, Any]]] = defaultdict(list)

    def image_folder(self, split: str | None) -> str:
        """Return images/ or images/{split}."""
        return "images" if split is None else f"images/{split}"

    def add(self, record: Record) -> None:
        """Keep the entries of an image and its instances."""
        images, annotations = self._images[record.split], self._annotations[record.split]
        height, width = record.sample.size
        name = record.file.relative_to(self.image_folder(record.split)).as_posix()
        images.append({"id": len(images) + 1, "file_name": name, "height": height, "width": width})
        for instance in record.sample.instances:
            x0, y0, x1, y1 = instance.box
            drawn: Any = (
                [ring.ravel().tolist() for ring in outlines(instance)]
                # The first pixel alone would be a polygon of noughts and ones, which looks normalised to readers.
                if self.as_outlines and max(x1, y1) > 1
                else mask_rle(instance.mask, (x0, y0), (height, width))
            )
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": instance.class_id,
                    "segmentation": drawn,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": instance.area,
                    "iscrowd": 0,
                }
            )

    def finish(self) -> None:
        """Write the JSON files."""
        categories = [{"id": class_id, "name": name} for class_id, name in sorted(self.classes.items())]
        for split, images in self._images.items():
            name = "annotations.json" if split is None else f"annotations/instances_{split}.json"
            content = {"images": images, "annotations": self._annotations[split], "categories": categories}
            write_text(self.folder / name, json.dumps(content))
