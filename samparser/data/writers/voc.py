"""Pascal VOC's segmentation: palette PNGs of classes and of objects, lists, and a labelmap.txt as CVAT's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from samparser._files import replacing, write_text

from ..sample import DataError
from .painting import object_ids, painted
from .writer import Record, Writer, in_order

_VOID = 255


class VocWriter(Writer):
    """`JPEGImages/`, `SegmentationClass/`, `SegmentationObject/`, `ImageSets/Segmentation/` and `labelmap.txt`."""

    knows_outlines = False
    knows_void = True

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        super().__init__(folder, classes, as_outlines=as_outlines)
        self._numbers = {name: number + 1 for name, number in in_order(classes).items()}
        if len(self._numbers) >= _VOID:
            raise DataError(f"VOC's masks have room for 254 classes, and there are {len(self._numbers)}; choose coco.")
        self._lists: dict[str, list[str]] = defaultdict(list)

    def image_folder(self, split: str | None) -> str:
        """Return JPEGImages, whatever the split."""
        return "JPEGImages"

    def add(self, record: Record) -> None:
        """Write both masks of an image."""
        ids, hidden = painted(record.sample, skip=_VOID)
        self.lost.update(hidden)
        table = np.zeros(int(ids.max(initial=0)) + 2, dtype=np.uint8)
        instances = record.sample.instances
        for number, instance in zip(object_ids(len(instances), _VOID), instances, strict=True):
            if number < len(table):  # otherwise wholly hidden
                table[number] = self._numbers[self.classes[instance.class_id]]
        classes = table[ids]
        if record.sample.void is not None:
            void = record.sample.void & (ids == 0)
            ids[void] = classes[void] = _VOID
        self._save(classes, "SegmentationClass", record)
        self._save(ids, "SegmentationObject", record)
        self._lists[record.split or "default"].append(record.file.stem)

    def _save(self, values: np.ndarray, folder: str, record: Record) -> None:
        path = self.folder / folder / f"{record.file.stem}.png"
        with replacing(path) as file:
            if values.max(initial=0) > _VOID:
                Image.fromarray(values.astype(np.uint16)).save(file)
                note = (
                    "Where there are more than 254 objects, SegmentationObject has 16 bits, which VOC itself has not."
                )
                self.notes += [] if note in self.notes else [note]
            else:
                picture = Image.fromarray(values.astype(np.uint8)).convert("P")
                picture.putpalette(palette().ravel().tolist())
                picture.save(file)

    def finish(self) -> None:
        """Write the lists and the names."""
        for split, stems in self._lists.items():
            write_text(self.folder / "ImageSets/Segmentation" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        lines = ["# label:color_rgb:parts:actions\n", "background:0,0,0::\n"]
        for name, number in self._numbers.items():
            plain = name.replace(":", "_").replace("\n", " ")
            plain = f"_{plain}" if plain.startswith("#") or plain.lower() == "background" else plain
            if plain != name:
                self.lost["names of classes, which labelmap.txt has no room for as they are"] += 1
            lines.append(f"{plain}:{','.join(map(str, palette()[number].tolist()))}::\n")
        write_text(self.folder / "labelmap.txt", "".join(lines))


def palette() -> np.ndarray:
    """Return VOC's colours: uint8 (256, 3). Bit 3k + c of an index is bit 7 - k of channel c of its colour."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for k in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * k + channel) & 1) << (7 - k)).astype(np.uint8)
    return colours
