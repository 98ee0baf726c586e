"""Where the images, labels and names of a YOLO data set lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samparser._extras import require

from ..sample import DataError
from ..settings import DataSettings
from .drawn import inside
from .images import IMAGE_SUFFIXES
from .paths import read_text, visible_files
from .reader import Layout
from .split_folders import SPLIT_FOLDERS
from .yolo import YoloReader

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a data.yaml says.

    Raises:
        DataError: It is damaged, or no mapping.
    """
    yaml = require("yaml", "Reading a data.yaml")
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not YAML that can be read: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must be of the form 'train: images/train', 'names: [cat, dog]'.")
    return content


def class_names(content: dict[str, Any], root: Path) -> dict[int, str]:
    """Return class number -> name, of a data.yaml or of a file with a name a line; empty if there are none."""
    names = content.get("names")
    if names is None:
        path = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()] if path else []
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    plain = isinstance(pairs, dict) and all(
        str(number).isdecimal() and isinstance(name, str | int | float)
        for number, name in pairs.items()
        if isinstance(number, str | int)
    )
    if not plain:
        raise DataError(f"The names in the YAML file of {root} must be a list, or numbers with a name each.")
    return {int(number): str(name) for number, name in sorted(pairs.items())}


def find_yaml(root: Path) -> Path | None:
    """Return the file that names the parts of a data set: the root itself, data.yaml, or the one with `names`."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    paths = sorted(path for suffix in ("yaml", "yml") for path in root.glob(f"[!.]*.{suffix}") if path.is_file())
    for name in ("data", "dataset"):
        for path in paths:
            if path.stem == name:
                return path
    named = [path for path in paths if _has_names(path)]
    return named[0] if len(named) == 1 else None


def _has_names(path: Path) -> bool:
    """Tell whether a YAML file is about a data set, without parsing it."""
    with open(path, "rb") as file:
        text = file.read(1_000_000)
    return b"names" in text and any(key in text for key in (b"train", b"val", b"path", b"nc"))


def _images(base: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Return the images of a split: those of the folders, or in the lists, that the data.yaml names for it."""
    entries = content.get(split) or (content.get("valid") if split == "val" else None) or []
    found: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = _place(base, content.get("path"), entry) if isinstance(entry, str) else None
        if place is not None and place.is_dir():
            found += _pictures(place)
        elif place is not None and place.suffix == ".txt":
            listed = [line.strip() for line in read_text(place).splitlines() if line.strip()]
            found += [path for line in listed if (path := _place(base, content.get("path"), line)) is not None]
    return found


def _place(base: Path, folder: Any, entry: str) -> Path | None:
    """Return where an entry of a data.yaml lies, by the longest end of its name that there is below the root."""
    parts = inside(entry, inside(folder) if isinstance(folder, str) else "").split("/")
    tries = (base.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in tries if path.exists()), None)


def _pictures(folder: Path) -> list[Path]:
    return [path for path in visible_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _source(root: Path) -> tuple[Path, dict[str, Any]]:
    path = find_yaml(root)
    base = root.parent if root.is_file() else root
    content = {} if path is None else read_yaml(path)
    if not any(isinstance(content.get(key), str | list) for key in (*SPLIT_FOLDERS, "valid")):
        content |= _by_folders(base)
    return base, content


def _by_folders(base: Path) -> dict[str, Any]:
    """Return the parts of a data set without a data.yaml: images/train/ or train/images/, or images/ as a pool."""
    found: dict[str, Any] = {}
    for split, words in SPLIT_FOLDERS.items():
        places = [f"{form.format(word)}" for word in words for form in ("images/{}", "{}/images")]
        here = [place for place in places if (base / place).is_dir()]
        if here:
            found[split] = here
    return found


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that the data.yaml or the folders name and that have images."""
    base, content = _source(root)
    named = [key for key in (*SPLIT_FOLDERS, "valid") if content.get(key)]
    found = tuple(split for split in SPLIT_FOLDERS if _images(base, content, split))
    if named and not found:
        first = content[named[0]]
        example = f" ({first:.100})" if isinstance(first, str) else ""  # other values may be endless, by aliases
        raise DataError(
            f"{find_yaml(root) or base} names {', '.join(named)}{example}, but no such folder or "
            f"list with images lies below {base}. Put the images there, or give the folder that holds them."
        )
    return found


def open_reader(root: Path, settings: DataSettings, split: str | None) -> YoloReader:
    """Return the reader of one split, or of the pool for None."""
    base, content = _source(root)
    if split is None:
        folder = base / (settings.images or "images")
        images = _pictures(folder if folder.is_dir() else base)
    else:
        images = _images(base, content, split)
    return YoloReader(images, base, class_names(content, base), settings)


def recognise(root: Path) -> bool:
    """Tell whether there is a data.yaml with names, or label files in labels/."""
    path = find_yaml(root)
    if path is not None and _has_names(path):
        return True
    return root.is_dir() and any(_has_labels(folder) for folder in _label_folders(root))


def _label_folders(root: Path) -> Iterable[Path]:
    return [root / "labels", *sorted(root.glob("*/labels"))]


def _has_labels(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != "classes.txt" for path in visible_files(folder, "*.txt"))


LAYOUT = Layout(
    "YOLO segmentation: images/ and labels/ (each with or inside train/ and val/), text files of polygons, data.yaml "
    "with names",
    recognise,
    splits,
    open_reader,
)
