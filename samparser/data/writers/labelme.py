"""labelme's JSON: a file beside each image."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from samparser._files import write_text

from ..sample import Instance
from .outlines import outlines
from .writer import Record, Writer

_IGNORED = "__ignore__"


class LabelmeWriter(Writer):
    """`{split}/NAME.json` beside `{split}/NAME.png`; masks, or polygons, of which several of one object are a group."""

    knows_void = True

    def image_folder(self, split: str | None) -> str:
        """Return the split's folder, or the folder itself."""
        return split or "."

    def add(self, record: Record) -> None:
        """Write the JSON file of an image."""
        height, width = record.sample.size
        shapes: list[dict[str, Any]] = []
        for number, instance in enumerate(record.sample.instances, start=1):
            shapes += self._shapes(instance, self.classes[instance.class_id], number)
        if record.sample.void is not None:
            void = Instance.from_mask(record.sample.void, 0, "void")
            shapes += [] if void is None else self._shapes(void, _IGNORED, len(record.sample.instances) + 1)
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": record.file.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_text(self.folder / record.file.with_suffix(".json"), json.dumps(content, indent=2))

    def _shapes(self, instance: Instance, label: str, number: int) -> list[dict[str, Any]]:
        common: dict[str, Any] = {"label": label, "description": "", "flags": {}, "group_id": None}
        x0, y0, x1, y1 = instance.box
        if not self.as_outlines:
            points = [[x0, y0], [x1 - 1, y1 - 1]]
            return [common | {"shape_type": "mask", "points": points, "mask": _png(instance.mask)}]
        parts = outlines(instance)
        group = number if len(parts) > 1 else None
        return [common | {"shape_type": "polygon", "points": ring.tolist(), "group_id": group} for ring in parts]


def _png(mask: np.ndarray) -> str:
    stored = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(stored, "PNG")
    return base64.b64encode(stored.getvalue()).decode("ascii")
