"""Reader and Layout: one source of samples, and how a data set of one kind is found and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from samparser._words import did_you_mean, shortened

from ..sample import DataError, Sample, Skipped
from ..settings import DataSettings


class Reader(Protocol):
    """One source of samples: an annotation file, a pair of folders, a set of volumes.

    Attributes:
        classes: Class id -> name.
        names: Name of each sample, known without opening it.
        skipped: What was left out when the source was indexed.
    """

    classes: dict[int, str]

    @property
    def names(self) -> Sequence[str]: ...

    skipped: list[Skipped]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index` with what was left out of it; DataError when it cannot be read."""
        ...


class Layout(NamedTuple):
    """How one kind of data set is found and read.

    Attributes:
        looks_like: What its folder holds, for messages.
        recognise: Whether a folder or file has this layout.
        splits: The splits that a data set has of its own; empty if it is one pool.
        open_reader: The reader of a split, or of the pool for None.
        held_out: Part of a pool that becomes val.
        min_area: Smallest instance in pixels.
    """

    looks_like: str
    recognise: Callable[[Path], bool]
    splits: Callable[[Path, DataSettings], tuple[str, ...]]
    open_reader: Callable[[Path, DataSettings, str | None], Reader]
    held_out: float = 0.2
    min_area: int = 1


def merge_classes(tables: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """Return one table of classes out of several, which must not give one id two names."""
    merged: dict[int, str] = {}
    for table in tables:
        for class_id, name in table.items():
            if merged.setdefault(class_id, name) != name:
                raise DataError(
                    f"Class {class_id} is {merged[class_id]!r} in one annotation file and {name!r} in another. "
                    f"Give both files the same categories."
                )
    return merged


def class_ids(classes: Mapping[int, str], names: Sequence[str] | None) -> frozenset[int] | None:
    """Return the ids of the classes of these names, or None for None, which means all of them.

    Raises:
        DataError: There is no class of that name; the message lists those that there are.
    """
    if names is None:
        return None
    if not names:
        raise DataError("An empty list of classes keeps nothing. Leave the setting out to keep all classes.")
    found = set()
    for name in names:
        ids = {i for i, known in classes.items() if known == name}
        if not ids:
            raise DataError(
                f"There is no class {name!r}.{did_you_mean(name, classes.values())} Classes: "
                f"{shortened(classes.values(), 30)}."
            )
        found |= ids
    return frozenset(found)
