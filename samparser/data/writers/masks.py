"""Images beside masks: ids of objects in `folders`, buildings or not in WHU's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from samparser._files import replacing

from ..readers.labels import separate
from .painting import painted
from .writer import Record, Writer, in_order


class FoldersWriter(Writer):
    """`images/` and `masks/`, by split where there are splits; a mask's value is an object's id, classes are lost."""

    knows_outlines = False

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self.notes.append("The values of the masks are ids of objects: read them with --instances ids.")
        if len(in_order(classes)) > 1:
            self.lost["names of classes"] = len(in_order(classes))

    def image_folder(self, split: str | None) -> str:
        """Return images/ or images/{split}."""
        return "images" if split is None else f"images/{split}"

    def add(self, record: Record) -> None:
        """Write the mask of an image, of 8 bits where its ids fit."""
        ids, hidden = painted(record.sample)
        self.lost.update(hidden)
        folder = "masks" if record.split is None else f"masks/{record.split}"
        _save(ids, self.folder / folder / f"{record.file.stem}.png")


class WhuWriter(Writer):
    """`{split}/image/` and `{split}/label/`; a label is 255 where any object is."""

    knows_outlines = False

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        if list(in_order(classes)) != ["building"]:
            self.lost["names of classes, all of which are building in WHU's layout"] = len(in_order(classes))

    def image_folder(self, split: str | None) -> str:
        """Return {split}/image; a set without a division is all in train."""
        return f"{split or 'train'}/image"

    def add(self, record: Record) -> None:
        """Write the label of an image, and count the objects that are not one of its connected regions."""
        ids, _ = painted(record.sample)
        regions = {(region.box, region.mask.tobytes()) for region in separate((ids > 0).astype(np.int64), True)}
        ours = Counter((instance.box, instance.mask.tobytes()) for instance in record.sample.instances)
        together = sum(times - (key in regions) for key, times in ours.items())
        if together:
            self.lost["objects that touch others or have several parts: regions are the objects there"] += together
        _save(255 * (ids > 0), self.folder / f"{record.split or 'train'}/label/{record.file.stem}.png")


def _save(values: np.ndarray, path: Path) -> None:
    with replacing(path) as file:
        Image.fromarray(values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)).save(file)
