"""Label Studio's tasks with annotations: one JSON file for each split, brushes or polygons."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from samparser._files import write_text

from ..readers.brush import brush_rle
from ..readers.shapes import placed
from ..sample import Instance, Sample
from .outlines import outlines
from .writer import Record, Writer


class LabelStudioWriter(Writer):
    """`{split}.json`, or `tasks.json` for a set without a division, and `images/`, named as local files."""

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self._tasks: dict[str | None, list[dict[str, Any]]] = defaultdict(list)

    def image_folder(self, split: str | None) -> str:
        """Return images/ or images/{split}."""
        return "images" if split is None else f"images/{split}"

    def add(self, record: Record) -> None:
        """Keep the task of an image."""
        tasks = self._tasks[record.split]
        kind = "polygonlabels" if self.as_outlines else "brushlabels"
        height, width = record.sample.size
        result = [
            {
                "id": str(number),
                "type": kind,
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": self._value(instance, record.sample) | {kind: [self.classes[instance.class_id]]},
            }
            for number, instance in enumerate(record.sample.instances, start=1)
        ]
        address = f"/data/local-files/?d={quote(record.file.as_posix())}"
        tasks.append({"id": len(tasks) + 1, "data": {"image": address}, "annotations": [{"result": result}]})

    def _value(self, instance: Instance, sample: Sample) -> dict[str, Any]:
        height, width = sample.size
        if self.as_outlines:
            (ring,) = outlines(instance, one=True)
            return {"points": [[100 * x / width, 100 * y / height] for x, y in ring.tolist()], "closed": True}
        return {"format": "rle", "rle": brush_rle(placed(instance.mask, *instance.box[:2], height, width))}

    def finish(self) -> None:
        """Write the JSON files, and say how Label Studio finds the images."""
        for split, tasks in self._tasks.items():
            write_text(self.folder / f"{split or 'tasks'}.json", json.dumps(tasks))
        self.notes.append("Label Studio shows the images where its LOCAL_FILES_DOCUMENT_ROOT is this folder.")
