"""YOLO's polygons: a text file for each image, a line for each object, and a data.yaml with the names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from samparser._words import count

from ..sample import DataError, Skipped, warn
from ..settings import DataSettings
from .drawn import DrawnReader, Entry, Shape, sample_name
from .paths import read_text
from .segmentations import BadMask, polygon_mask
from .shapes import numbers

_LOOKED_INTO = 50  # label files, to tell boxes from polygons


class YoloReader(DrawnReader):
    """Samples of images with a label file each: lines of `class x y x y ...`, parts of the image's width and height.

    Args:
        images: The image files.
        root: Names of samples are paths relative to this folder.
        classes: Class number -> name.
        settings: Which classes to keep.

    Raises:
        DataError: No image has a label file, or the label files hold boxes only.
    """

    def __init__(self, images: Sequence[Path], root: Path, classes: dict[int, str], settings: DataSettings) -> None:
        skipped: list[Skipped] = []
        entries = []
        for image in images:
            label = label_file(image)
            if label.is_file() and label.stat().st_size:
                entries.append(Entry(sample_name(image, root), image, label))
            else:
                skipped.append(Skipped(sample_name(image, root), "no instance"))
        if not entries:
            raise DataError(
                f"None of the {count(len(images), 'image')} of {root} has a label file that is not empty; that of "
                f"{images[0]} would be {label_file(images[0])}."
                if images
                else f"{root} has label files, but no image beside them: images/ and labels/ must hold the same names."
            )
        labels = [entry.source for entry in entries]
        _refuse_boxes(labels)
        super().__init__(entries, classes or _by_number(labels), skipped, settings)

    def shapes(self, entry: Entry, height: int, width: int) -> Iterator[Shape | Skipped]:
        """Yield a shape for each line; boxes and lines that are damaged are left out."""
        for number, line in enumerate(read_text(entry.source).splitlines(), start=1):
            words = line.split()
            if not words:
                continue
            where = f"line {number}"
            if len(words) == 5:
                yield Skipped(where, "no segmentation, only a box")
            elif not words[0].isdecimal():
                yield Skipped(where, "line that does not start with the number of a class")
            elif int(words[0][:9]) not in self.classes:
                yield Skipped(where, f"class {words[0][:9]}, which has no name")
            else:
                yield Shape(where, self.classes[int(words[0])], partial(_polygon, words[1:], height, width))


def _polygon(words: list[str], height: int, width: int) -> np.ndarray:
    if len(words) % 2 or len(words) < 6:
        raise BadMask("line that is not a class and at least three x, y pairs")
    values = np.array(numbers(words, "polygon")).reshape(-1, 2)
    if values.min() < -1 or values.max() > 2:
        raise BadMask("polygon whose coordinates are no parts of the image's width and height (0 to 1)")
    return polygon_mask([(values * (width, height)).ravel().tolist()], height, width, in_pixels=True)


def label_file(image: Path) -> Path:
    """Return where the labels of an image lie: the last folder `images` of its path is `labels` there."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            return Path(*parts)
    return image.with_suffix(".txt")


def _refuse_boxes(labels: Sequence[Path]) -> None:
    """Refuse label files of which none of the first ones has anything but boxes."""
    lines = [line.split() for path in labels[:_LOOKED_INTO] for line in _lines(path)]
    if lines and all(len(words) == 5 for words in lines):
        raise DataError(
            f"The label files hold boxes (class, x, y, width, height) and no polygons, {labels[0]} for instance, so "
            f"there is no mask to learn from. Export polygons (YOLO segmentation), or draw masks with the boxes as "
            f"prompts: samparser predict."
        )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in read_text(path).splitlines() if line.strip()]
    except DataError:
        return []  # told when its turn comes


def _by_number(labels: Sequence[Path]) -> dict[int, str]:
    found = {int(line.split()[0][:9]) for path in labels for line in _lines(path) if line.split()[0].isdecimal()}
    warn(
        f"There is no data.yaml with names nor a classes.txt; the {count(len(found), 'class', 'classes')} are called "
        f"by their numbers."
    )
    return {number: str(number) for number in sorted(found)}
