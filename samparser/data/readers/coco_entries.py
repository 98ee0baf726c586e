"""The entries of a COCO file's lists, and the ids that refer from one to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from samparser._words import count, shortened

from ..sample import DataError

# Exporters write ids as 7, 7.0, "7" and "007", and some as names.
Id = int | float | str
NOT_SET = (None, 0, False, "", "0", "false", "False")


class CocoImage(msgspec.Struct):
    """An entry of the list of images; `height` and `width` are None where the file does not say."""

    id: Id
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: str = ""

    def __post_init__(self) -> None:
        if self.file_name in (None, ""):
            if not self.coco_url:
                raise ValueError("Object missing required field `file_name`")
            self.file_name = "/".join(self.coco_url.split("/")[-2:])  # LVIS names its images by their address alone
        self.file_name = str(self.file_name)
        self.height, self.width = _as_side(self.height), _as_side(self.width)


class CocoCategory(msgspec.Struct):
    """An entry of the list of categories."""

    id: Id
    name: Any


class CocoAnnotation(msgspec.Struct, gc=False):
    """What is indexed of an entry of the list of annotations."""

    image_id: Id
    category_id: Id
    iscrowd: Any = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    attributes: Any = None

    def has_segmentation(self) -> bool:
        """Whether the segmentation is neither null nor empty. A number out of range is refused later, with its mask."""
        try:
            return bool(msgspec.json.decode(self.segmentation))
        except msgspec.DecodeError:
            return True


class CocoIds:
    """Where the entries of a table stand, by their ids, which are only keys: 7, 7.0 and "007" mean the same entry.

    Unless the table has several of them: then they are told apart as they are written.

    Args:
        path: The file, for messages.
        field: How annotations call the id.
        table: The list that has the entries.
        ids: Of the entries, in order.
    """

    def __init__(self, path: Path, field: str, table: str, ids: Iterable[Id]) -> None:
        self._path, self._field, self._table = path, field, table
        self._listed = list(ids)
        self._place = {id: place for place, id in enumerate(self._listed)}
        self._numbers = [_as_number(id) for id in self._listed]
        times = Counter(self._numbers)
        self._by_number = {number: n for n, number in enumerate(self._numbers) if times[number] == 1}
        self._packed = packed(self._listed)
        self._order = np.argsort(self._packed) if isinstance(self._packed, np.ndarray) else np.zeros(0, dtype=np.int64)
        self._unknown: Counter[Id] = Counter()
        self.repeated = len(self._place) < len(self._listed)

    def places(self, ids: Sequence[np.ndarray | list[Id]]) -> np.ndarray:
        """Return the places of entries by their ids, which come in pieces as `packed` makes them.

        Raises:
            DataError: The table does not list an id.
        """
        places = [np.zeros(0, dtype=np.int32), *map(self._places_of, ids)]
        self._refuse_unknown()
        return np.concatenate(places)

    def _places_of(self, ids: np.ndarray | list[Id]) -> np.ndarray:
        if isinstance(ids, list):
            return np.array([self._find(id) for id in ids], dtype=np.int32)
        if isinstance(self._packed, list) or not self._listed:
            return np.array([self._find(id) for id in ids.tolist()], dtype=np.int32)
        at = np.searchsorted(self._packed, ids, sorter=self._order).clip(max=len(self._listed) - 1)
        places = self._order[at].astype(np.int32)
        for n in np.flatnonzero(self._packed[places] != ids).tolist():
            places[n] = self._find(int(ids[n]))
        return places

    def _find(self, id: Id) -> int:
        place = self._place.get(id)
        if place is None:
            number = _as_number(id)
            place = -1 if number is None else self._by_number.get(number, -1)
            if place < 0:
                self._unknown[id] += 1
        return place

    def as_class_ids(self) -> np.ndarray:
        """Return the ids as int64 (N,), or a count from 1 where one is not such a number."""
        apart = len(set(self._numbers)) == len(self._place)
        if apart and all(number is not None and abs(number) < 2**63 for number in self._numbers):
            return np.array(self._numbers, dtype=np.int64)
        return np.arange(1, len(self._listed) + 1)

    def _refuse_unknown(self) -> None:
        if not self._unknown:
            return
        number = self._unknown.total()
        counts_from_0 = self._field == "category_id" and 0 in self._unknown and 1 in self._place
        hint = " The annotations seem to count from 0 and the categories from 1." if counts_from_0 else ""
        raise DataError(
            f"{count(number, 'annotation')} of {self._path} {'has' if number == 1 else 'have'} {self._field} "
            f"{shortened(self._unknown)}, but its {self._table} list has the ids {shortened(self._listed, 10)}.{hint} "
            f"Correct one of the two."
        )


def packed(ids: list[Id]) -> np.ndarray | list[Id]:
    """Return ids as int64 (N,) where all are such numbers, otherwise as they are."""
    numbers = np.array(ids)  # of another type where one is a text, a fraction or beyond 64 bits
    return numbers if numbers.dtype == np.int64 else ids


def _as_side(length: Any) -> Any:
    """Return a number of pixels as int where it is one, written as 128, 128.0 or "128"; None for null and 0."""
    try:
        return int(float(length)) or None
    except (TypeError, ValueError, OverflowError):
        return length


def _as_number(id: Id) -> int | None:
    try:
        return int(id) if int(id) == float(id) else None
    except (ValueError, OverflowError):
        return None
