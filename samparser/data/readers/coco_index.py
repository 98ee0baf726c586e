"""An index of a COCO JSON file that leaves the segmentations on disk.

COCO's instances_train2017.json has 860 thousand annotations; as Python objects they take several GB. Here each
annotation is parsed once for its few small fields and forgotten, and only its place in the file is kept.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..sample import DataError

_DECODER = json.JSONDecoder()
_COLUMNS = ("image_id", "category_id", "crowd", "segmented", "area", "start", "end")


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What `index_coco` finds. A is the number of annotations, in the file's order.

    Attributes:
        path: The file.
        images: Each image's dict of the file.
        categories: Category id -> name.
        image_id: int64 (A,).
        category_id: int64 (A,).
        crowd: int64 (A,): 1 where iscrowd is set.
        segmented: int64 (A,): 1 where the annotation has a segmentation.
        area: float64 (A,), the annotation's own area field, NaN where it has none.
        start: int64 (A,), its first byte in the file.
        end: int64 (A,), the byte after its last.
    """

    path: Path
    images: list[dict[str, Any]]
    categories: dict[int, str]
    image_id: np.ndarray
    category_id: np.ndarray
    crowd: np.ndarray
    segmented: np.ndarray
    area: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def annotations(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """The annotations of these numbers, read from the file again."""
        found = []
        with open(self.path, "rb") as file:
            for start, end in zip(self.start[numbers].tolist(), self.end[numbers].tolist(), strict=True):
                file.seek(start)
                found.append(json.loads(file.read(end - start)))
        return found


def index_coco(path: Path) -> CocoFile:
    """Reads a COCO JSON file once and keeps what finding an image's annotations takes.

    Raises:
        DataError: The file is missing, is not JSON, or is JSON of another kind.
    """
    try:
        # Latin-1 gives one character a byte, so that a place in the text is a place in the file.
        with open(path, encoding="latin-1", newline="") as file:
            text = file.read()
    except OSError as error:
        raise DataError(f"The annotation file {path} cannot be read: {error.strerror}.") from error
    try:
        top, columns = _scan(text, path)
    except (json.JSONDecodeError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{path} is not a JSON file, or only the beginning of one.") from error
    images, categories = _checked_tables(top, path)
    return CocoFile(path, images, categories, *(np.array(column) for column in columns))


def _scan(text: str, path: Path) -> tuple[dict[str, Any], list[array]]:
    """The values at the top of the file, and the columns of `CocoFile` for its annotations."""
    top: dict[str, Any] = {}
    columns: list[array] = [array("d" if name == "area" else "q") for name in _COLUMNS]
    at = _skip_space(text, 3 if text.startswith("\xef\xbb\xbf") else 0)
    if text[at] == "[":
        return {"a list at the top": None}, columns
    at = _skip_space(text, _expect(text, at, "{"))
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip_space(text, _expect(text, _skip_space(text, at), ":"))
        if key == "annotations" and text[at] == "[":
            top[key] = []
            at = _scan_annotations(text, at + 1, columns, path)
        else:
            end = _DECODER.raw_decode(text, at)[1]
            # Names may hold any character: this part is decoded as what it is.
            top[key] = json.loads(text[at:end].encode("latin-1"))
            at = end
        at = _after_item(text, at, "}")
    return top, columns


def _scan_annotations(text: str, at: int, columns: list[array], path: Path) -> int:
    """Fills the columns from the array that opens before ``at``; the place after its closing bracket."""
    at = _skip_space(text, at)
    while text[at] != "]":
        item, end = _DECODER.raw_decode(text, at)
        for column, value in zip(columns, (*_small_fields(item, len(columns[0]), path), at, end), strict=True):
            column.append(value)
        at = _after_item(text, end, "]")
    return at + 1


def _small_fields(item: Any, number: int, path: Path) -> tuple[int, int, int, int, float]:
    try:
        area = item.get("area")
        return (
            int(item["image_id"]),
            int(item["category_id"]),
            int(bool(item.get("iscrowd", 0))),
            int(bool(item.get("segmentation"))),
            float("nan") if area is None else float(area),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"Annotation number {number} of {path} is not COCO's: it needs whole numbers image_id and category_id "
            f"({type(error).__name__}: {error})."
        ) from error


def _checked_tables(top: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(top.get(key), list)]
    if missing:
        raise DataError(
            f"{path} is JSON but not a COCO annotation file: it has no list {' and no list '.join(missing)}; found "
            f"{', '.join(sorted(top)[:8]) or 'nothing'}. COCO files have images, annotations and categories."
        )
    try:
        categories = {int(category["id"]): str(category["name"]) for category in top["categories"]}
        images = [image | {"id": int(image["id"]), "file_name": str(image["file_name"])} for image in top["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not COCO's: each category needs id and name, each image id and file_name "
            f"({type(error).__name__}: {error})."
        ) from error
    return images, categories


def _skip_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _expect(text: str, at: int, sign: str) -> int:
    if text[at] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text[at : at + 20], 0)
    return at + 1


def _after_item(text: str, at: int, closing: str) -> int:
    """The place of the next item after a comma, or of the closing bracket."""
    at = _skip_space(text, at)
    return at if text[at] == closing else _skip_space(text, _expect(text, at, ","))
