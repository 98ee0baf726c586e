"""CVAT's own XML, "CVAT for images 1.1": one file for all images of a task or a project."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from ..sample import DataError, Skipped
from ..settings import DataSettings
from .drawn import DrawnReader, Entry, Shape, find_images, numbered, refuse_other_size, sample_name
from .reader import Layout
from .segmentations import FAR, BadMask
from .shapes import ellipse_mask, numbers, outline_mask, placed, rectangle_mask
from .split_folders import SPLIT_FOLDERS, split_of
from .xml_files import read_xml

_HEAD = 4096
_NO_AREA = ("points", "polyline", "cuboid", "skeleton", "tag")


class CvatImage(NamedTuple):
    """An `<image>` element.

    Attributes:
        name: Of the image file.
        subset: Of the project that it belongs to; empty in a task.
        size: (height, width) as the file has it.
        shapes: Tag and attributes of each.
    """

    name: str
    subset: str
    size: tuple[str | None, str | None]
    shapes: tuple[tuple[str, Mapping[str, str]], ...]


class CvatFile(NamedTuple):
    """What an XML file says: the labels in its order (empty where it does not list them) and the images."""

    labels: list[str]
    images: list[CvatImage]


class CvatReader(DrawnReader):
    """Samples of CVAT's XML files. Shapes of one group and label are one object.

    Args:
        files: The XML files.
        split: The split to take, by the subset of the images or the names of the files; None takes all.
        root: Names of samples are paths relative to this folder.
        settings: Which classes to keep, and where images lie.
    """

    def __init__(self, files: list[Path], split: str | None, root: Path, settings: DataSettings) -> None:
        read = [read_cvat(path) for path in files]
        labels = list(dict.fromkeys(label for file in read for label in file.labels))
        drawn = {
            attributes.get("label", "") for file in read for image in file.images for _, attributes in image.shapes
        }
        classes = dict(enumerate(labels, start=1)) if labels else numbered(drawn)
        images = [
            image for path, file in zip(files, read, strict=True) for image in file.images
            if split is None or _split_of(image, path, root) == split
        ]  # fmt: skip
        # Two subsets may have images of one name; in an export each lies in the folder of its subset.
        names = [f"{image.subset}/{image.name}" if image.subset else image.name for image in images]
        skipped: list[Skipped] = []
        entries = []
        for image, path in zip(images, find_images(root, names, settings), strict=True):
            if path is None:
                skipped.append(Skipped(image.name, "image file missing"))
            else:
                found = frozenset(a.get("label", "") for tag, a in image.shapes if tag not in _NO_AREA)
                entries.append(Entry(sample_name(path, root), path, image, found))
        if not entries:
            first = f", {images[0].name} for instance" if images else ""
            raise DataError(
                f"None of the {len(images)} images of {files[0]}{first} was found below {root}. Put them into images/, "
                f"as an export with images has them, or name their folder with the images setting."
            )
        super().__init__(entries, classes, skipped, settings)

    def shapes(self, entry: Entry, height: int, width: int) -> Iterator[Shape | Skipped]:
        """Yield the shapes of an image; points, lines and cuboids are left out."""
        image: CvatImage = entry.source
        refuse_other_size(entry.name, "the XML", image.size, height, width)
        for number, (tag, attributes) in enumerate(image.shapes, start=1):
            where = f"shape {number}"
            if tag in _NO_AREA:
                yield Skipped(where, f"{tag}, which is no mask")
            elif tag not in _DRAWN:
                yield Skipped(where, f"shape of the unknown type {tag:.40}")
            else:
                group = attributes.get("group_id", "0")
                name = where if group in ("", "0") else f"group {group}"
                yield Shape(name, attributes.get("label", ""), partial(_DRAWN[tag], attributes, height, width))


def _values(attributes: Mapping[str, str], names: str, what: str, limit: float) -> list[float]:
    """Return attributes as numbers; names are separated by spaces."""
    return numbers((attributes.get(name) for name in names.split()), what, limit)


def _polygon(attributes: Mapping[str, str], height: int, width: int) -> np.ndarray:
    pairs = [point.split(",") for point in attributes.get("points", "").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise BadMask("polygon that is not a list of x,y pairs")
    flat = numbers((value for pair in pairs for value in pair), "polygon", FAR * max(height, width))
    return outline_mask(list(zip(flat[::2], flat[1::2], strict=True)), height, width)


def _box(attributes: Mapping[str, str], height: int, width: int) -> np.ndarray:
    corners = _values(attributes, "xtl ytl xbr ybr", "rectangle", FAR * max(height, width))
    return rectangle_mask(corners, height, width, attributes.get("rotation", 0))


def _ellipse(attributes: Mapping[str, str], height: int, width: int) -> np.ndarray:
    cx, cy, rx, ry = _values(attributes, "cx cy rx ry", "ellipse", FAR * max(height, width))
    return ellipse_mask((cx, cy), (rx, ry), height, width, attributes.get("rotation", 0))


def _mask(attributes: Mapping[str, str], height: int, width: int) -> np.ndarray:
    """Draw a mask: run lengths along the rows of a box, the first of pixels that are not in it."""
    names = ("left", "top", "width", "height")
    runs = attributes.get("rle", "").split(",")
    try:
        left, top, columns, rows = (int(float(attributes[name])) for name in names)
        lengths = np.array([int(run) for run in runs], dtype=np.int64)
    except (KeyError, ValueError, OverflowError):
        raise BadMask("mask whose box or run lengths are not numbers") from None
    if not (0 < columns <= 2 * width and 0 < rows <= 2 * height):
        raise BadMask("mask larger than its image")
    if (lengths < 0).any() or (lengths > columns * rows).any() or lengths.sum() != columns * rows:
        raise BadMask("mask whose run lengths do not add up to its box")
    crop = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(rows, columns)
    return placed(crop, left, top, height, width)


_DRAWN = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}


def read_cvat(path: Path) -> CvatFile:
    """Return the labels and images of an XML file.

    Raises:
        DataError: It is no XML, or not CVAT's for images.
    """
    tree = read_xml(path)
    if tree.tag != "annotations" or tree.find("track") is not None:
        kind = "CVAT for video" if tree.tag == "annotations" else f"<{tree.tag}>"
        raise DataError(f"{path} is {kind}, not CVAT for images 1.1. Export the task again in that format.")
    labels = [name for label in tree.iterfind("meta//labels/label") if (name := label.findtext("name"))]
    return CvatFile(labels, [_image(element) for element in tree.iterfind("image")])


def _image(element: Element) -> CvatImage:
    shapes = tuple((str(shape.tag), dict(shape.attrib)) for shape in element)
    size = element.get("height"), element.get("width")
    return CvatImage(element.get("name", ""), element.get("subset", ""), size, shapes)


def _split_of(image: CvatImage, path: Path, root: Path) -> str | None:
    return split_of(image.subset.lower()) or split_of(path.relative_to(root))


def find_files(root: Path) -> list[Path]:
    """Return the XML files of CVAT at a root, or in the folders below it."""
    if root.is_file():
        return [root] if _is_cvat(root) else []
    candidates = itertools.chain(root.glob("[!.]*.xml"), root.glob("[!.]*/[!.]*.xml"))
    return sorted(path for path in candidates if _is_cvat(path))


def _is_cvat(path: Path) -> bool:
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with open(path, "rb") as file:
        return b"<annotations" in file.read(_HEAD).replace(b"\0", b"")  # as UTF-16 has between its letters


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that the subsets of the images, or the names of the files, say; none if one says none."""
    base = root.parent if root.is_file() else root
    found = {_split_of(image, path, base) for path in find_files(root) for image in read_cvat(path).images}
    return () if None in found else tuple(split for split in SPLIT_FOLDERS if split in found)


def open_reader(root: Path, settings: DataSettings, split: str | None) -> CvatReader:
    """Return the reader of one split, or of the pool for None."""
    files = find_files(root)
    if not files:
        raise DataError(f"{root} holds no XML file of CVAT. Expected annotations.xml and images/.")
    return CvatReader(files, split, root.parent if root.is_file() else root, settings)


LAYOUT = Layout(
    "CVAT for images 1.1: annotations.xml and images/",
    lambda root: bool(find_files(root)),
    splits,
    open_reader,
)
