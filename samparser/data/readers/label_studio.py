"""Label Studio's JSON export: a list of tasks, each with an image's name and the regions of its annotations."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from samparser._untrusted import parse_json

from ..sample import DataError, Skipped
from ..settings import DataSettings
from .brush import brush_mask
from .drawn import DrawnReader, Entry, Shape, find_images, numbered, refuse_other_size, sample_name
from .images import IMAGE_SUFFIXES
from .paths import read_text, visible_files
from .reader import Layout
from .segmentations import FAR, BadMask
from .shapes import ellipse_mask, numbers, outline_mask, rectangle_mask
from .split_folders import of_split, splits_of

_HEAD = 65536
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the names of uploaded files
_AROUND = "None of the {} tasks of {} has its image below {}{}. Put the images there, or name their folder with images."


class LabelStudioReader(DrawnReader):
    """Samples of Label Studio's tasks. Of several annotations of a task the ground truth counts, or the latest.

    Args:
        files: The JSON files to take.
        everything: The JSON files of all splits, whose labels are the classes.
        root: Names of samples are paths relative to this folder.
        settings: Which classes to keep, and where images lie.
    """

    def __init__(self, files: Sequence[Path], everything: Sequence[Path], root: Path, settings: DataSettings) -> None:
        skipped: list[Skipped] = []
        labels: set[str] = set()
        found: list[tuple[str, list[dict[str, Any]], frozenset[str]]] = []
        for path in everything:
            for number, task in enumerate(read_tasks(path), start=1):
                where = f"{path.relative_to(root).as_posix()}: task {task.get('id', number)}"
                regions, left_out = _regions(task, where)
                mine = frozenset(label for region in regions for label in _labels(region)[:1])
                labels |= mine
                if path not in files:
                    continue
                skipped += left_out
                name = image_name(task, regions)
                if name is None:
                    skipped.append(Skipped(where, "task without one image"))
                else:
                    found.append((name, regions, mine))
        names = [name for name, _, _ in found]
        paths = find_images(root, names, settings)
        bare = find_images(root, [_UPLOAD.sub("", name.rpartition("/")[2], count=1) for name in names], settings)
        entries = []
        for (name, regions, mine), as_said, without in zip(found, paths, bare, strict=True):
            image = as_said or without
            if image is None:
                skipped.append(Skipped(name, "image file missing"))
            else:
                entries.append(Entry(sample_name(image, root), image, regions, mine))
        if not entries:
            raise DataError(_AROUND.format(len(found), files[0], root, f"; {names[0]} is the first" if names else ""))
        super().__init__(entries, numbered(labels), skipped, settings)

    def shapes(self, entry: Entry, height: int, width: int) -> Iterator[Shape | Skipped]:
        """Yield the regions of a task; what is no mask is left out."""
        of_region = {region.get("id"): _labels(region) for region in entry.source if _labels(region)}
        for number, region in enumerate(entry.source, start=1):
            where = f"region {region.get('id', number)}"
            value, kind = region["value"], str(region.get("type"))
            draw = next((draw for key, draw in _DRAWN.items() if key in value), None)
            if draw is None:
                if kind != "labels":
                    yield Skipped(where, f"{kind:.40}, which is no mask")
                continue
            refuse_other_size(
                entry.name, "its task", (region.get("original_height"), region.get("original_width")), height, width
            )
            labels = _labels(region) or of_region.get(region.get("id"), [])
            if not labels:
                yield Skipped(where, "region without a label")
            elif region.get("image_rotation"):
                yield Skipped(where, "drawn on a picture that was turned in Label Studio")
            elif region.get("item_index"):
                yield Skipped(where, "region of another image of its task")
            else:
                yield Shape(where, labels[0], partial(draw, value, height, width))
                if len(labels) > 1:
                    yield Skipped(where, "second label of a region; the first one counts")


def _percent(values: Sequence[Any], what: str, height: int, width: int) -> list[float]:
    """Return x, y, x, y, ... of the image's width and height in percent, as pixels."""
    found = numbers(values, what, 100 * FAR)
    return [value * (width, height)[place % 2] / 100 for place, value in enumerate(found)]


def _polygon(value: dict[str, Any], height: int, width: int) -> np.ndarray:
    points = value["points"]
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise BadMask("polygon whose points are not a list of x, y pairs")
    flat = _percent([side for point in points for side in point], "polygon", height, width)
    return outline_mask(list(zip(flat[::2], flat[1::2], strict=True)), height, width)


def _rectangle(value: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Draw a rectangle, which turns about its top left corner."""
    sides = [value.get(key) for key in ("x", "y", "width", "height")]
    x, y, w, h = _percent(sides, "rectangle", height, width)
    return rectangle_mask((x, y, x + w, y + h), height, width, value.get("rotation") or 0, (x, y))


def _ellipse(value: dict[str, Any], height: int, width: int) -> np.ndarray:
    sides = [value.get(key) for key in ("x", "y", "radiusX", "radiusY")]
    x, y, rx, ry = _percent(sides, "ellipse", height, width)
    return ellipse_mask((x, y), (rx, ry), height, width, value.get("rotation") or 0)


def _brush(value: dict[str, Any], height: int, width: int) -> np.ndarray:
    return brush_mask(value["rle"], height, width)


# By the field that only such a region has. A key point has a width, and no height.
_DRAWN = {"points": _polygon, "rle": _brush, "radiusX": _ellipse, "height": _rectangle}


def _labels(region: dict[str, Any]) -> list[str]:
    """Return the labels of a region: the list in its value that is called labels, or polygonlabels and the like."""
    for key, value in region["value"].items():
        if key.endswith("labels") and isinstance(value, list):
            return [str(label) for label in value]
    return []


def _regions(task: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """Return the regions of the annotation that counts, and the annotations that do not."""
    given = task.get("annotations") or task.get("completions") or []
    annotations = [
        annotation for annotation in (given if isinstance(given, list) else ())
        if isinstance(annotation, dict) and not annotation.get("was_cancelled")
    ]  # fmt: skip
    if not annotations:
        return [], []
    best = max(annotations, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at", ""))))
    skipped = [
        Skipped(f"{where}: annotation {annotation.get('id')}", "another annotation of the same image")
        for annotation in annotations
        if annotation is not best
    ]
    result = best.get("result")
    regions = [
        region for region in (result if isinstance(result, list) else ())
        if isinstance(region, dict) and isinstance(region.get("value"), dict)
    ]  # fmt: skip
    return regions, skipped


def image_name(task: dict[str, Any], regions: Sequence[dict[str, Any]]) -> str | None:
    """Return where a task says that its image lies, as a path; None if it names none, or several.

    Of `/data/local-files/?d=FOLDER/a.png` that is `FOLDER/a.png`; of other addresses, what follows the host.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    tags = [data.get(str(region.get("to_name"))) for region in regions[:1]]
    for value in (*tags, *data.values(), task.get("file_upload")):
        if not isinstance(value, str):
            continue
        address = urlsplit(value) if "://" in value or value.startswith("/") else None
        local = parse_qs(address.query).get("d") if address is not None else None
        path = local[0] if local else unquote(address.path) if address is not None else unquote(value)
        if Path(path).suffix.lower() in IMAGE_SUFFIXES:
            return path
    return None


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """Return the tasks of a JSON export.

    Raises:
        DataError: It is no JSON, or no list of tasks.
    """
    try:
        content = parse_json(read_text(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} is not JSON that can be read: {error}.") from error
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise DataError(f"{path} is no list of tasks. Export from Label Studio as JSON (not JSON-MIN).")
    return content


def is_export(path: Path) -> bool:
    """Tell whether a file is a list of tasks, by its first bytes."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD).removeprefix(BOM_UTF8).lstrip()
    return head[:1] == b"[" and any(key in head for key in (b'"annotations"', b'"completions"'))


def find_files(root: Path) -> list[Path]:
    """Return the exports at a root and in the folders directly below it."""
    if root.is_file():
        return [root] if is_export(root) else []
    candidates = [path for path in visible_files(root, "*.json") if len(path.relative_to(root).parts) <= 2]
    return [path for path in candidates[:50] if is_export(path)]


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that the names of the files say; none if one of them says none."""
    return splits_of(find_files(root), root) if root.is_dir() else ()


def open_reader(root: Path, settings: DataSettings, split: str | None) -> LabelStudioReader:
    """Return the reader of one split, or of the pool for None."""
    base = root.parent if root.is_file() else root
    files = find_files(root)
    if not files:
        raise DataError(f"{root} holds no JSON export of Label Studio, a list of tasks with annotations.")
    return LabelStudioReader(of_split(files, base, split), files, base, settings)


LAYOUT = Layout(
    "Label Studio: its JSON export, a list of tasks, and the images",
    lambda root: bool(find_files(root)),
    splits,
    open_reader,
)
