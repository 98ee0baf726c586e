"""Reader: one source of samples, and the table of classes of several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Protocol

from samparser.data.sample import DataError, Sample, Skipped


class Reader(Protocol):
    """One source of samples: an annotation file, a pair of folders, a set of volumes.

    Attributes:
        classes: Class id -> name.
        names: Name of each sample, known without opening it.
        skipped: What was left out when the source was indexed.
    """

    classes: dict[int, str]
    names: list[str]
    skipped: list[Skipped]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Sample ``index`` with what was left out of it; DataError when it cannot be read."""
        ...


def merge_classes(tables: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """One table of classes out of several, which must not give one id two names."""
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
    """Ids of the classes of these names, or None for None, which means all of them.

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
            near = get_close_matches(name, classes.values(), 1)
            raise DataError(
                f"There is no class {name!r}." + (f" Did you mean {near[0]!r}?" if near else "") + " Classes: "
                f"{', '.join(classes.values())}."
            )
        found |= ids
    return frozenset(found)
