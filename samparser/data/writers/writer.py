"""Writer: what every format is written by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..sample import Sample


class Record(NamedTuple):
    """A sample whose image is in its place.

    Attributes:
        sample: The sample.
        file: The image, below the folder that is written.
        split: "train", "val" or "test"; None in a set without a division.
    """

    sample: Sample
    file: Path
    split: str | None


class Writer(ABC):
    """Writes one format: `add` each sample, then `finish`.

    Args:
        folder: The folder to fill; the images are put into it by the caller.
        classes: Class id -> name.
        as_outlines: Write polygons where the format knows masks too.

    Attributes:
        lost: What the format cannot hold -> how many times it was met.
        notes: What one has to know to use what was written.
    """

    knows_masks: ClassVar[bool] = True
    """Whether the format knows masks."""
    knows_outlines: ClassVar[bool] = True
    """Whether the format knows polygons."""
    knows_void: ClassVar[bool] = False
    """Whether the format can say where nothing is known."""

    def __init__(self, folder: Path, classes: Mapping[int, str], *, as_outlines: bool) -> None:
        self.folder, self.classes = folder, dict(classes)
        self.as_outlines = as_outlines
        self.lost: Counter[str] = Counter()
        self.notes: list[str] = []

    @abstractmethod
    def image_folder(self, split: str | None) -> str:
        """Return the folder of the images of a split, below the folder that is written."""

    @abstractmethod
    def add(self, record: Record) -> None:
        """Write the instances of a sample, or keep them for `finish`."""

    def finish(self) -> None:  # noqa: B027 - a format with a file for each image has nothing left to do
        """Write what is about the whole set."""


def in_order(classes: Mapping[int, str]) -> dict[str, int]:
    """Return the names of classes, numbered from 0 in the order of their ids; a name counts once."""
    return {name: number for number, name in enumerate(dict.fromkeys(classes[i] for i in sorted(classes)))}
