"""An index of a COCO JSON file that leaves the segmentations on disk.

COCO's instances_train2017.json has 860 thousand annotations; as Python objects they take several GB. Here the file is
read once, a window at a time; of each annotation its few small fields and its place in the file are kept, as arrays.
"""

from __future__ import annotations

import json
import math
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..columns import Column, Texts
from ..sample import DataError
from .coco_entries import NOT_SET, CocoAnnotation, CocoCategory, CocoIds, CocoImage, Id, packed
from .coco_whole import read_whole
from .json_lists import WINDOW, Irregular, Piece, read_lists, spans
from .paths import check_regular

_LONG = 1000  # more digits than a number of pixels, or an id that is one, can have; Python reads up to 4300
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "images": msgspec.json.Decoder(list[CocoImage]),
    "annotations": msgspec.json.Decoder(list[CocoAnnotation]),
    "categories": msgspec.json.Decoder(list[CocoCategory]),
}
_SETTLED = 2.0  # seconds: a file that was written just now may be written again without looking changed


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What `index_coco` finds. I is the number of images and A that of annotations, both in the file's order.

    Attributes:
        path: The file.
        names: The images' file names, I of them.
        sides: int64 (I, 2), their heights and widths; 0 where the file does not say.
        odd_sides: Place in `names` -> (height, width) where one of them is no number of pixels.
        categories: Category id -> name; ids that are not whole numbers are replaced by a count from 1.
        image: int32 (A,), each annotation's place in `names`.
        category_id: int64 (A,), its key in `categories`.
        segmented: bool (A,), where the annotation has a segmentation.
        crowd: bool (A,), where iscrowd is set.
        runs: bool (A,), where the segmentation is a run-length encoding.
        brush: bool (A,), where the annotation has the attributes that CVAT writes.
        start: int64 (A,), its first byte in the file.
        end: int64 (A,), the byte after its last.
    """

    path: Path
    names: Texts
    sides: Column
    odd_sides: dict[int, tuple[Any, Any]]
    categories: dict[int, str]
    image: Column
    category_id: Column
    segmented: Column
    crowd: Column
    runs: Column
    brush: Column
    start: Column
    end: Column

    def size(self, place: int) -> tuple[Any, Any]:
        """Return the (height, width) that the file says an image has; None for what it does not say."""
        if place in self.odd_sides:
            return self.odd_sides[place]
        height, width = self.sides.values[place].tolist()
        return height or None, width or None

    def annotations(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Return the annotations of these numbers, read from the file again."""
        found = []
        bounds = (column.values[numbers].tolist() for column in (self.start, self.end))
        with open(self.path, "rb") as file:
            for start, end in zip(*bounds, strict=True):
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


_open_files: weakref.WeakValueDictionary[tuple[Any, ...], CocoFile] = weakref.WeakValueDictionary()


def index_coco(path: Path, window: int = WINDOW) -> CocoFile:
    """Read a COCO JSON file once and keep what finding an image's annotations takes.

    A file that another data set in this process has open, and that has not changed, is not read again.

    Args:
        path: The file.
        window: Bytes that are in memory at a time.

    Raises:
        DataError: The file is missing, is not JSON, or is JSON of another kind; or its annotations name images or
            categories that it does not list.
    """
    try:
        if path.exists():
            check_regular(path)
        about = path.stat()
        state = (str(path), path.absolute(), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        file = _open_files.get(state)
        if file is None:
            file = _read(path, window)
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}.") from error
    if max(about.st_mtime, about.st_ctime) + _SETTLED < time.time():
        _open_files[state] = file
    return file


def _read(path: Path, window: int) -> CocoFile:
    try:
        with open(path, "rb") as file:
            return _indexed(path, read_lists(file, _DECODERS, window))
    except Irregular:
        return _indexed(path, read_whole(path, _DECODERS))


def _indexed(path: Path, pieces: Iterable[Piece]) -> CocoFile:
    """Put the index together from pieces of the three lists, in any order."""
    names: list[str] = []
    sides: list[tuple[Any, Any]] = []
    image_ids: list[Id] = []
    categories: list[CocoCategory] = []
    referred: list[tuple[np.ndarray | list[Id], np.ndarray | list[Id]]] = []
    rows: list[np.ndarray] = []
    for key, entries, text, start in pieces:
        if key == "images":
            names += [image.file_name for image in entries]
            sides += [(image.height, image.width) for image in entries]
            image_ids += [image.id for image in entries]
        elif key == "categories":
            categories += entries
        else:
            referred.append((packed([a.image_id for a in entries]), packed([a.category_id for a in entries])))
            rows.append(_columns(entries, text, start))
    of_images = CocoIds(path, "image_id", "images", image_ids)
    of_categories = CocoIds(path, "category_id", "categories", (category.id for category in categories))
    if of_images.repeated:
        raise DataError(f"{path} gives one image id to several images; ids must be unique.")
    category = of_categories.places([ids for _, ids in referred])
    image = of_images.places([ids for ids, _ in referred])
    class_ids = of_categories.as_class_ids()
    known = {class_id: str(category.name) for class_id, category in zip(class_ids.tolist(), categories, strict=True)}
    columns = np.concatenate(rows) if rows else np.zeros(0, dtype=_ROW)
    return CocoFile(
        path,
        Texts(names),
        *_sides(sides),
        known,
        Column(image),
        Column(class_ids[category]),
        *(Column(columns[field]) for field in ("segmented", "crowd", "runs", "brush", "start", "end")),
    )


_ROW = np.dtype([(name, bool) for name in ("segmented", "crowd", "runs", "brush")] + [("start", "i8"), ("end", "i8")])


def _columns(entries: list[CocoAnnotation], text: bytes, start: int) -> np.ndarray:
    """Return what is kept of annotations beside their ids, as records (N,)."""
    rows = np.zeros(len(entries), dtype=_ROW)
    first, last = spans(text, len(entries))
    rows["start"], rows["end"] = first + start, last + start
    # Long segmentations are not decoded to see that they are not empty.
    rows["segmented"] = [len(memoryview(a.segmentation)) > 16 or a.has_segmentation() for a in entries]
    rows["crowd"] = [a.iscrowd not in NOT_SET for a in entries]
    if text.count(b"{") == len(entries):  # so nothing in them is an object
        return rows
    rows["runs"] = [memoryview(a.segmentation)[:1] == b"{" for a in entries]
    rows["brush"] = [isinstance(a.attributes, dict) and "occluded" in a.attributes for a in entries]
    return rows


def _sides(sides: list[tuple[Any, Any]]) -> tuple[Column, dict[int, tuple[Any, Any]]]:
    odd = {
        place: pair
        for place, pair in enumerate(sides)
        if not all(side is None or (type(side) is int and 0 < side < 2**63) for side in pair)
    }
    plain = [(0, 0) if place in odd else (h or 0, w or 0) for place, (h, w) in enumerate(sides)]
    return Column(np.array(plain, dtype=np.int64).reshape(-1, 2)), odd
