"""labelme's JSON, one file for each image, as X-AnyLabeling writes it too."""

from __future__ import annotations

import base64
import io
import math
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samparser._untrusted import parse_json

from ..sample import DataError, Skipped
from ..settings import DataSettings
from .drawn import DrawnReader, Entry, Shape, find_images, inside, numbered, refuse_other_size, sample_name
from .images import Embedded, as_rgb, open_pixels
from .paths import read_text, visible_files
from .reader import Layout
from .segmentations import FAR, BadMask
from .shapes import ellipse_mask, numbers, outline_mask, placed, rectangle_mask
from .split_folders import of_split, splits_of

_HEAD = 4096
_NO_AREA = ("point", "points", "line", "linestrip")
# labelme's own converters take these two names for what is unknown and for what is no object.
_IGNORED, _BACKGROUND = "__ignore__", "_background_"


class LabelmeReader(DrawnReader):
    """Samples of labelme's files. Shapes of one group and label are one object; `__ignore__` is void.

    Args:
        files: The JSON files to take.
        everything: The JSON files of all splits, whose labels are the classes.
        root: Names of samples are paths relative to this folder.
        settings: Which classes to keep, and where images lie.
    """

    void_label = _IGNORED

    def __init__(self, files: Sequence[Path], everything: Sequence[Path], root: Path, settings: DataSettings) -> None:
        skipped: list[Skipped] = []
        wanted = set(files)
        classes: set[str] = set()
        found: list[tuple[Path, dict[str, Any], frozenset[str]]] = []
        for path in everything:
            content = _read(path)
            if isinstance(content, str):
                skipped += [Skipped(path.relative_to(root).as_posix(), content)] if path in wanted else []
                continue
            labels = frozenset(_label(shape) for shape in content["shapes"]) - {_BACKGROUND}
            classes |= labels - {_IGNORED}
            if path in wanted:
                found.append((path, {k: content.get(k) for k in ("imagePath", "embedded")}, labels - {_IGNORED}))
        names = [
            inside(content["imagePath"] or path.with_suffix(".png").name, path.parent.relative_to(root).as_posix())
            for path, content, _ in found
        ]
        entries = []
        for (path, content, labels), image in zip(found, find_images(root, names, settings), strict=True):
            if image is not None:
                entries.append(Entry(sample_name(image, root), image, path, labels))
            elif content["embedded"]:
                entries.append(Entry(sample_name(path, root), None, path, labels))
            else:
                skipped.append(Skipped(content["imagePath"] or sample_name(path, root), "image file missing"))
        if not entries:
            raise DataError(
                f"None of the {len(found)} labelme files of {root} has its image beside it or embedded"
                + (f"; {names[0]} is the first. Name the folder with the images setting." if names else ".")
            )
        super().__init__(entries, numbered(classes), skipped, settings)

    def image(self, entry: Entry) -> np.ndarray:
        """Return the picture of an entry, from its file or from the JSON."""
        if entry.image is not None:
            return super().image(entry)
        content = _read(entry.source)
        data = content["imageData"] if isinstance(content, dict) else None
        try:
            picture = Embedded(base64.b64decode(data or "", validate=True), f"the imageData of {entry.name}")
        except (ValueError, TypeError) as error:
            raise DataError(f"The imageData of {entry.source} is not base64: {error}.") from error
        return as_rgb(open_pixels(picture), str(picture), self._intensity)

    def shapes(self, entry: Entry, height: int, width: int) -> Iterator[Shape | Skipped]:
        """Yield the shapes of a file; points and lines are left out."""
        content = _read(entry.source)
        if isinstance(content, str):
            raise DataError(f"{entry.source}: {content}.")
        said = (content.get("imageHeight"), content.get("imageWidth"))
        refuse_other_size(entry.name, entry.source.name, said, height, width)
        for number, shape in enumerate(content["shapes"], start=1):
            where, kind = f"shape {number}", shape.get("shape_type") or "polygon"
            group = shape.get("group_id")
            if kind in _NO_AREA:
                yield Skipped(where, f"{kind}, which has no area")
            elif kind not in _DRAWN:
                yield Skipped(where, f"shape of the unknown type {kind!s:.40}")
            elif _label(shape) != _BACKGROUND:
                name = where if group is None else f"group {group}"
                yield Shape(name, _label(shape), partial(_DRAWN[kind], shape, height, width))


def _points(shape: dict[str, Any], height: int, width: int, fewest: int, most: float = math.inf) -> list[Any]:
    points = shape.get("points")
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise BadMask("shape whose points are not a list of x, y pairs")
    if not fewest <= len(points) <= most:
        raise BadMask(f"shape with {len(points)} points")
    flat = numbers((value for point in points for value in point), "shape", FAR * max(height, width))
    return list(zip(flat[::2], flat[1::2], strict=True))


def _polygon(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    return outline_mask(_points(shape, height, width, 3), height, width)


def _rectangle(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    corners = np.array(_points(shape, height, width, 2, 4))
    return rectangle_mask((*corners.min(axis=0), *corners.max(axis=0)), height, width)


def _circle(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    middle, edge = _points(shape, height, width, 2, 2)
    radius = math.dist(middle, edge)
    return ellipse_mask(middle, (radius, radius), height, width)


def _mask(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Draw a mask: a PNG of the box between two points, both of which are pixels of it."""
    (left, top), (right, bottom) = _points(shape, height, width, 2, 2)
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or "", validate=True))) as picture:
            if picture.width > 2 * width or picture.height > 2 * height:
                raise BadMask("mask larger than its image")
            crop = np.asarray(picture.convert("L")) > 0
    except BadMask:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        raise BadMask("mask that is no PNG in base64") from None
    if max(abs(right - left + 1 - crop.shape[1]), abs(bottom - top + 1 - crop.shape[0])) > 1.5:
        raise BadMask("mask of another size than its box")
    return placed(crop, round(left), round(top), height, width)


_DRAWN = {
    "polygon": _polygon, "rectangle": _rectangle, "rotation": _polygon, "circle": _circle, "mask": _mask
}  # fmt: skip


def _label(shape: dict[str, Any]) -> str:
    return str(shape.get("label"))


def _read(path: Path) -> dict[str, Any] | str:
    """Return the content of a file, or why it is none of labelme's."""
    try:
        content = parse_json(read_text(path))
    except DataError as error:
        return str(error)
    except ValueError:
        return "not JSON that can be read"
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return "JSON without shapes"
    if not all(isinstance(shape, dict) for shape in content["shapes"]):
        return "JSON with a shape that has no fields"
    content["embedded"] = bool(content.get("imageData"))
    if not isinstance(content.get("imagePath"), str):
        content["imagePath"] = None
    return content


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else list(visible_files(root, "*.json"))


def is_labelme(path: Path) -> bool:
    """Tell whether a file is labelme's, by its first bytes: an embedded image makes it long."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD).removeprefix(BOM_UTF8).lstrip()
    return head[:1] == b"{" and any(key in head for key in (b'"shapes"', b'"imagePath"', b'"imageData"'))


def recognise(root: Path) -> bool:
    """Tell whether there are labelme files, among the first ones."""
    return any(is_labelme(path) for path in _files(root)[:50])


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that the folders of the files name; none if one of them lies in no such folder."""
    return () if root.is_file() else splits_of(_files(root), root)


def open_reader(root: Path, settings: DataSettings, split: str | None) -> LabelmeReader:
    """Return the reader of one split, or of the pool for None."""
    files = _files(root)
    base = root.parent if root.is_file() else root
    return LabelmeReader(of_split(files, base, split), files, base, settings)


LAYOUT = Layout(
    "labelme: a JSON file for each image, beside it or with the image embedded", recognise, splits, open_reader
)
