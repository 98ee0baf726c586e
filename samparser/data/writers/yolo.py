"""YOLO segmentation: a text file of polygons for each image, and a data.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from samparser._files import write_text

from .outlines import outlines
from .writer import Record, Writer, in_order


class YoloWriter(Writer):
    """`images/{split}/`, `labels/{split}/` and `data.yaml`; an object is one polygon."""

    knows_masks = False

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self._numbers = in_order(classes)
        self._splits: list[str] = []

    def image_folder(self, split: str | None) -> str:
        """Return images/{split}; a set without a division is all in train."""
        return f"images/{split or 'train'}"

    def add(self, record: Record) -> None:
        """Write the label file of an image."""
        height, width = record.sample.size
        lines = []
        for instance in record.sample.instances:
            (ring,) = outlines(instance, one=True)
            points = (f"{x / width:.8g} {y / height:.8g}" for x, y in ring.tolist())
            lines.append(f"{self._numbers[self.classes[instance.class_id]]} {' '.join(points)}\n")
        split = record.split or "train"
        if split not in self._splits:
            self._splits.append(split)
        write_text(self.folder / "labels" / split / f"{record.file.stem}.txt", "".join(lines))

    def finish(self) -> None:
        """Write data.yaml, without `path`: its own folder is meant then. A JSON string is a YAML string too."""
        parts = [f"{split}: images/{split}\n" for split in self._splits]
        names = [f"  {number}: {json.dumps(name)}\n" for name, number in self._numbers.items()]
        write_text(self.folder / "data.yaml", "".join([*parts, "names:\n", *names]))
        if "val" not in self._splits:
            self.notes.append("data.yaml names no val, which YOLO's trainers need; --val_ratio 0.2 divides the set.")
