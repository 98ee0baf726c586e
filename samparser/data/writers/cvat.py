"""CVAT for images 1.1: one XML file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samparser._files import replacing

from ..sample import Instance
from .outlines import outlines
from .writer import Record, Writer, in_order


class CvatWriter(Writer):
    """`annotations.xml` and `images/`, by subset where there are splits; masks, or polygons in groups."""

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self._root = ElementTree.Element("annotations")
        ElementTree.SubElement(self._root, "version").text = "1.1"
        meta = ElementTree.SubElement(self._root, "meta")
        labels = ElementTree.SubElement(ElementTree.SubElement(meta, "project"), "labels")
        for name in in_order(classes):
            ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
        self._images = 0

    def image_folder(self, split: str | None) -> str:
        """Return images/ or images/{split}."""
        return "images" if split is None else f"images/{split}"

    def add(self, record: Record) -> None:
        """Keep the elements of an image and its instances."""
        height, width = record.sample.size
        head = {"id": str(self._images), "name": record.file.name}
        subset = {} if record.split is None else {"subset": record.split}
        size = {"width": str(width), "height": str(height)}
        image = ElementTree.SubElement(self._root, "image", head | subset | size)
        self._images += 1
        for number, instance in enumerate(record.sample.instances, start=1):
            common = {"label": self.classes[instance.class_id], "source": "manual", "occluded": "0"}
            if not self.as_outlines:
                ElementTree.SubElement(image, "mask", common | _mask(instance) | {"z_order": "0"})
                continue
            parts = outlines(instance)
            group = {"group_id": str(number)} if len(parts) > 1 else {}
            for ring in parts:
                points = {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in ring.tolist())}
                ElementTree.SubElement(image, "polygon", common | points | {"z_order": "0"} | group)

    def finish(self) -> None:
        """Write the XML file."""
        ElementTree.indent(self._root)
        with replacing(self.folder / "annotations.xml") as file:
            ElementTree.ElementTree(self._root).write(file, encoding="utf-8", xml_declaration=True)


def _mask(instance: Instance) -> dict[str, str]:
    """Return the attributes of a mask: run lengths along the rows of its box, the first of pixels not in it."""
    flat = np.concatenate([[False], instance.mask.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [instance.mask.size]])).tolist()
    x0, y0, x1, y1 = instance.box
    box = {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
    return {"rle": ", ".join(map(str, runs))} | {key: str(value) for key, value in box.items()}
