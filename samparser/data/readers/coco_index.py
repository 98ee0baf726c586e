"""An index of a COCO JSON file that leaves the segmentations on disk.

COCO's instances_train2017.json has 860 thousand annotations; as Python objects they take several GB. Here each
annotation is parsed once for its few small fields and forgotten, and only its place in the file is kept.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from samparser._words import count, shortened

from ..sample import DataError
from .paths import check_regular

# Exporters write ids as 7, 7.0, "7" and "007", and some as names.
Id = int | float | str
_NOT_SET = (None, 0, False, "", "0", "false", "False")
_LONG = 1000  # more digits than a number of pixels, or an id that is one, can have; Python reads up to 4300
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRING_OR_NOT_FINITE = re.compile(rb'("(?:[^"\\]|\\.)*")|(-?Infinity|NaN)', re.DOTALL)


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


class _Category(msgspec.Struct):
    id: Id
    name: Any


class _Annotation(msgspec.Struct):
    image_id: Id
    category_id: Id
    iscrowd: Any = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    attributes: Any = None


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What `index_coco` finds. A is the number of annotations, in the file's order.

    Attributes:
        path: The file.
        images: Its list of images.
        categories: Category id -> name; ids that are not whole numbers are replaced by a count from 1.
        image: int64 (A,), each annotation's place in `images`.
        category_id: int64 (A,), its key in `categories`.
        segmented: bool (A,), where the annotation has a segmentation.
        crowd: bool (A,), where iscrowd is set.
        runs: bool (A,), where the segmentation is a run-length encoding.
        brush: bool (A,), where the annotation has the attributes that CVAT writes.
        start: int64 (A,), its first byte in the file.
        end: int64 (A,), the byte after its last.
    """

    path: Path
    images: list[CocoImage]
    categories: dict[int, str]
    image: np.ndarray
    category_id: np.ndarray
    segmented: np.ndarray
    crowd: np.ndarray
    runs: np.ndarray
    brush: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def annotations(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Return the annotations of these numbers, read from the file again."""
        found = []
        with open(self.path, "rb") as file:
            for start, end in zip(self.start[numbers].tolist(), self.end[numbers].tolist(), strict=True):
                file.seek(start)
                found.append(self._decoded(file.read(end - start).decode("utf-8", "replace")))
        return found

    def _decoded(self, text: str) -> dict[str, Any]:
        try:
            return json.loads(text)
        except RecursionError:
            raise DataError(f"{self.path} is not COCO's: its lists are nested too deeply.") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path} was changed while it was in use ({error}). Open it again.") from error
        except ValueError:  # Python refuses whole numbers of thousands of digits; as an infinite one, each is named
            return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _LONG else math.inf)


def index_coco(path: Path) -> CocoFile:
    """Read a COCO JSON file once and keep what finding an image's annotations takes.

    Raises:
        DataError: The file is missing, is not JSON, or is JSON of another kind; or its annotations name images or
            categories that it does not list.
    """
    try:
        if path.exists():
            check_regular(path)
        text = _standard_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}.") from error
    except RecursionError:
        raise DataError(f"{path} is not COCO's: its lists are nested too deeply.") from None
    tables = _tables(text, path)
    images = _entries(tables["images"], CocoImage, path, "each image needs id and file_name")
    categories = _entries(tables["categories"], _Category, path, "each category needs id and name")
    image_ids = _Ids(path, "image_id", "images", (image.id for image in images))
    category_ids = _Ids(path, "category_id", "categories", (category.id for category in categories))
    if image_ids.repeated:
        raise DataError(f"{path} gives one image id to several images; ids must be unique.")
    annotations = msgspec.json.decode(tables["annotations"], type=list[msgspec.Raw])
    decoder, first = msgspec.json.Decoder(_Annotation), _address(text)
    columns = np.zeros((8, len(annotations)), dtype=np.int64)
    for number, raw in enumerate(annotations):
        try:
            fields = decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"Annotation number {number} of {path} is not COCO's: it needs image_id and category_id ({error})."
            ) from error
        start = _address(raw) - first
        columns[:, number] = (
            image_ids.place(fields.image_id),
            category_ids.place(fields.category_id),
            # Long ones are not decoded to see that they are not empty.
            len(memoryview(fields.segmentation)) > 16 or _says_something(fields.segmentation),
            fields.iscrowd not in _NOT_SET,
            memoryview(fields.segmentation)[:1] == b"{",
            isinstance(fields.attributes, dict) and "occluded" in fields.attributes,
            start,
            start + len(memoryview(raw)),
        )
    category_ids.refuse_unknown()
    image_ids.refuse_unknown()
    class_ids = category_ids.as_class_ids()
    names = {class_id: str(category.name) for class_id, category in zip(class_ids.tolist(), categories, strict=True)}
    image, category = columns[:2]
    segmented, crowd, runs, brush = columns[2:6] == 1
    return CocoFile(path, images, names, image, class_ids[category], segmented, crowd, runs, brush, *columns[6:])


def _says_something(value: msgspec.Raw) -> bool:
    """Whether a value is neither null nor empty. A number out of range is something, and refused with its mask."""
    try:
        return bool(msgspec.json.decode(value))
    except msgspec.DecodeError:
        return True


def _entries(table: msgspec.Raw, kind: type, path: Path, needs: str) -> list[Any]:
    try:
        return msgspec.json.decode(table, type=list[kind])
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it again in this encoding.") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not COCO's: {needs} ({error}).") from error


class _Ids:
    """Where the entries of a table stand, by their ids, which are only keys: 7, 7.0 and "007" mean the same entry.

    Unless the table has several of them: then they are told apart as they are written.
    """

    def __init__(self, path: Path, field: str, table: str, ids: Iterable[Id]) -> None:
        self._path, self._field, self._table = path, field, table
        self._listed = list(ids)
        self._place = {id: place for place, id in enumerate(self._listed)}
        self._numbers = [_as_number(id) for id in self._listed]
        times = Counter(self._numbers)
        self._by_number = {number: n for n, number in enumerate(self._numbers) if times[number] == 1}
        self._unknown: Counter[Id] = Counter()
        self.repeated = len(self._place) < len(self._listed)

    def place(self, id: Id) -> int:
        """Return the place of an entry; -1, remembered for `refuse_unknown`, where there is none."""
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

    def refuse_unknown(self) -> None:
        """Raise DataError if a place was asked for an id that the table does not list."""
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


def _standard_json(text: bytes) -> bytes:
    """Return the text, of the same length, without a byte order mark and with NaN and Infinity in quotes.

    Both are not JSON, but Python writes them. Every other text that is not JSON stays so.
    """
    if text.startswith(_BYTE_ORDER_MARK):
        text = b" " * len(_BYTE_ORDER_MARK) + text[len(_BYTE_ORDER_MARK) :]
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return _STRING_OR_NOT_FINITE.sub(lambda found: found[1] or b'"%b"' % found[2][2:], text)
    return text


def _tables(text: bytes, path: Path) -> dict[str, msgspec.Raw]:
    """Return the lists at the top of a COCO file, not yet decoded; each refers to its place in `text`."""
    try:
        tables = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        tables = {"a list at the top": msgspec.Raw(b"null")}
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it again in this encoding.") from error
    except msgspec.DecodeError as error:
        hint = " It is in UTF-16; save it as UTF-8." if text[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path} is not a JSON file, or only the beginning of one ({error}).{hint}") from error
    wanted = ("images", "annotations", "categories")
    missing = [key for key in wanted if memoryview(tables.get(key, b""))[:1] != b"["]
    if missing:
        raise DataError(
            f"{path} is JSON but not a COCO annotation file: it has no list {' and no list '.join(missing)}; found "
            f"{', '.join(sorted(tables)[:8]) or 'nothing'}. COCO files have images, annotations and categories."
        )
    return tables


def _address(buffer: Any) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0])
