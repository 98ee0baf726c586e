"""Images with objects that are drawn shape by shape: what the readers of labelling tools' exports have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..sample import DataError, Instance, Sample, Skipped
from ..settings import DataSettings
from .coco_images import ImageFiles, relative_name
from .images import read_image
from .reader import class_ids
from .segmentations import BadMask


class Entry(NamedTuple):
    """An image and what an export says about it.

    Attributes:
        name: The sample's name.
        image: The image file; None where the export holds the picture itself.
        source: What the export says, in the form that its reader keeps.
        labels: Of its shapes; None where they are not known before it is read.
    """

    name: str
    image: Path | None
    source: Any
    labels: frozenset[str] | None = None


class Shape(NamedTuple):
    """A shape that is not drawn yet.

    Attributes:
        object: Which object of the image it is part of: shapes of one name are one mask.
        label: The name of its class.
        draw: Returns its mask, bool (H, W) of the image, or raises `BadMask`.
    """

    object: str
    label: str
    draw: Callable[[], np.ndarray]


class DrawnReader(ABC):
    """Samples of an export whose shapes are drawn when an image's turn comes.

    Args:
        entries: The images; a second one of a name is left out.
        classes: Class id -> name.
        skipped: What was left out when the export was indexed.
        settings: Which classes to keep, and how deep images are shown.

    Raises:
        DataError: There is no image, or no such class.
    """

    # Shapes with this label say where nothing is known; where there is none, every label is a class.
    void_label: str | None = None

    def __init__(
        self, entries: Sequence[Entry], classes: Mapping[int, str], skipped: list[Skipped], settings: DataSettings
    ) -> None:
        self.classes = dict(classes)
        self.skipped = skipped
        self._keep = class_ids(self.classes, settings.classes)
        self._ids = {name: class_id for class_id, name in reversed(self.classes.items())}  # the first of a name counts
        self._intensity = settings.intensity
        by_name: dict[str, Entry] = {}
        for entry in entries:
            wanted = entry.labels is None or self._wants(entry.labels)
            if not wanted:
                chosen = settings.classes and entry.labels
                self.skipped.append(
                    Skipped(entry.name, "no instance of the chosen classes" if chosen else "no instance")
                )
            elif by_name.setdefault(entry.name, entry) is not entry:
                self.skipped.append(Skipped(entry.name, "described more than once; the first one counts"))
        self._entries = list(by_name.values())
        self.names: list[str] = list(by_name)

    def _wants(self, labels: Iterable[str]) -> bool:
        """Tell whether one of these labels may be kept. One that is in no list of labels is told when it is read."""
        return any(self._keep is None or self._ids.get(label) in (None, *self._keep) for label in labels)

    @abstractmethod
    def shapes(self, entry: Entry, height: int, width: int) -> Iterable[Shape | Skipped]:
        """Yield the shapes of an image; for what is left out, say in `Skipped.where` which of them it was."""

    def image(self, entry: Entry) -> np.ndarray:
        """Return the picture of an entry: uint8 RGB (H, W, 3)."""
        if entry.image is None:
            raise DataError(f"{entry.name} has no image file.")
        return read_image(entry.image, self._intensity)

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; shapes that cannot be drawn are left out."""
        entry = self._entries[index]
        image = self.image(entry)
        height, width = image.shape[:2]
        masks: dict[tuple[str, str], np.ndarray] = {}
        skipped: list[Skipped] = []
        for shape in self.shapes(entry, height, width):
            if isinstance(shape, Skipped):
                skipped.append(Skipped(f"{entry.name}: {shape.where}", shape.why))
                continue
            where = f"{entry.name}: {shape.object}"
            if shape.label not in self._ids and shape.label != self.void_label:
                skipped.append(Skipped(where, f"label {shape.label!r}, which is not in the list of labels"))
                continue
            try:
                mask = shape.draw()
            except BadMask as error:
                skipped.append(Skipped(where, str(error)))
                continue
            if not mask.any():
                skipped.append(Skipped(where, "outside of the image, or empty"))
                continue
            key = (shape.label, shape.object)
            masks[key] = masks[key] | mask if key in masks else mask
        void = [mask for (label, _), mask in masks.items() if label == self.void_label]
        instances = [
            Instance.from_mask(mask, self._ids[label], name)
            for (label, name), mask in masks.items()
            if label != self.void_label and (self._keep is None or self._ids[label] in self._keep)
        ]
        found = tuple(instance for instance in instances if instance is not None)
        return Sample(entry.name, image, found, np.logical_or.reduce(void) if void else None), skipped


def numbered(labels: Iterable[str]) -> dict[int, str]:
    """Return a table of classes: the labels in order, counted from 1."""
    return dict(enumerate(sorted(set(labels)), start=1))


def inside(name: str, folder: str = "") -> str:
    """Return where an export says that an image lies as a name below the root; what leads out of it is cut off.

    Args:
        name: As the export has it, with either kind of slash.
        folder: Of the export, below the root.

    >>> inside("..\\\\images\\\\a.png", "labels"), inside("../../a.png", "labels"), inside("C:\\\\me\\\\a.png")
    ('images/a.png', 'a.png', 'me/a.png')
    """
    parts = list(PurePosixPath(folder).parts)
    for part in name.replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", ".") and not part.endswith(":"):
            parts.append(part)
    return "/".join(parts)


def find_images(root: Path, names: Sequence[str], settings: DataSettings) -> list[Path | None]:
    """Return the files of images below a root, None for those that are not there.

    Each is looked for by the longest end of its name: below the `images` setting, or the root, `images/`, `imgs/` and
    `JPEGImages/`. Nothing outside of the root is opened.
    """
    folders = [root, *(root / name for name in ("images", "imgs", "JPEGImages"))]
    if settings.images:
        folders = [root / settings.images]
    names = [inside(name) for name in names]
    finders = [ImageFiles(names, [folder]) for folder in dict.fromkeys(folders)]
    found: list[Path | None] = []
    for name in names:
        paths = (finder.find(name) for finder in finders)
        found.append(next((path for path in paths if path is not None), None))
    return found


def refuse_other_size(name: str, source: str, said: Sequence[object], height: int, width: int) -> None:
    """Refuse an image of another size than an export says: (height, width), None for what it does not say.

    Raises:
        DataError: It has; the message names the image and the export.
    """
    if None in said or [str(side) for side in said] == [str(height), str(width)]:
        return
    raise DataError(
        f"{name} has {width} x {height} px, but {source} says {said[1]} x {said[0]}: its shapes would not lie on the "
        f"objects. Was the image resized, or turned by EXIF, after it was annotated?"
    )


def sample_name(path: Path, root: Path) -> str:
    """Return the name of the sample of an image file."""
    return relative_name(path, root)
