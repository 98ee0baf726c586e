"""Where the COCO files and the images of a data set lie."""

from __future__ import annotations

import re
from pathlib import Path

from ..sample import DataError
from ..settings import DataSettings
from .coco import CocoReader
from .label_studio import is_export
from .labelme import is_labelme
from .reader import Layout

# instances_train2017, SSDD_instances_val, NWPU_instances_train, train, valid
_NAME = re.compile(r"(?:.*instances_)?(train|val|valid|test)((?:20\d\d)?)", re.IGNORECASE)
_BLOCK, _OVERLAP = 2**20, 32  # bytes to read at a time, and to see again lest a key is cut in two
_FOLDERS = ("imgs", "images", "JPEGImages", "positive image set", "")


def find_files(root: Path) -> dict[str, Path]:
    """Return the COCO files of the splits below a data set's root: "train", "val" or "test" -> path."""
    found: dict[str, Path] = {}
    candidates = [p for folder in ("annotations", "Annotations", ".") for p in sorted((root / folder).glob("*.json"))]
    candidates += sorted(root.glob("*/_annotations.coco.json"))
    for path in candidates:
        if path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.parent.name if path.name == "_annotations.coco.json" else path.stem)
        if not match:
            continue
        split = match[1].lower().replace("valid", "val")
        if split in found and not path.samefile(found[split]):
            raise DataError(
                f"{root} has two annotation files for {split}: {found[split].name} and {path.name}. Say which with the "
                f"annotations setting, for instance annotations/{path.name.replace(match[1], '{split}')}."
            )
        found[split] = path
    return found


def find_pool(root: Path) -> Path | None:
    """Return the one COCO file of a data set that comes without a division, if there is one."""
    if root.is_file():
        return root
    paths = [p for folder in ("", "annotations", "Annotations") for p in sorted((root / folder).glob("[!.]*.json"))]
    for name in ("annotations.json", "_annotations.coco.json", "instances.json", "instances_default.json"):
        for path in paths:
            if path.name == name:
                return path
    return paths[0] if len(paths) == 1 and _mentions_coco(paths[0]) else None


def _mentions_coco(path: Path) -> bool:
    """Tell whether a JSON file of any name has COCO's keys; without parsing it, as it may be large."""
    missing = {b'"images"', b'"annotations"', b'"categories"'}
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        text = b""
        while missing and (block := file.read(_BLOCK)):
            text = text[-_OVERLAP:] + block
            missing = {key for key in missing if key not in text}
    return not missing


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that the data set has of its own; empty if it is one pool."""
    if settings.annotations:
        if "{split}" not in settings.annotations:
            return ()
        return tuple(s for s in ("train", "val", "test") if (root / settings.annotations.format(split=s)).is_file())
    return () if root.is_file() else tuple(sorted(find_files(root), key=["train", "val", "test"].index))


def open_reader(root: Path, settings: DataSettings, split: str | None) -> CocoReader:
    """Return the reader of one split, or of the pool for None."""
    base = root.parent if root.is_file() else root
    path: Path | None
    if settings.annotations:
        path = base / settings.annotations.format(split=split or "")
    elif split is None:
        path = find_pool(root)
    else:
        path = find_files(root)[split]
    if path is None:
        raise DataError(
            f"No COCO annotation file was found below {root}. Expected annotations/instances_train.json and the like, "
            f"annotations.json, or the annotations setting."
        )
    folders = _image_folders(base, path, split, settings)
    return CocoReader(path, folders, base, settings.classes, settings.crowds, settings.intensity)


def _image_folders(root: Path, path: Path, split: str | None, settings: DataSettings) -> list[Path]:
    if settings.images:
        return [root / settings.images.format(split=split or "")]
    match = _NAME.fullmatch(path.stem)
    words = [match[1] + match[2], match[1]] if match else []
    words += [] if split is None else [split]
    folders = [root / word for word in words] + [root / "images" / word for word in words]
    folders += [root / word / "images" for word in words]
    folders += [root / name for name in _FOLDERS] + [path.parent]
    return list(dict.fromkeys(folders))


def _is_coco(path: Path) -> bool:
    """Tell whether there is a JSON file of one of COCO's names, or the file itself is one, that is no other tool's."""
    if path.is_file():
        found = [path] if path.suffix.lower() == ".json" else []
    else:
        pool = find_pool(path)
        found = list(find_files(path).values()) or ([] if pool is None else [pool])
    return any(not (is_export(file) or is_labelme(file)) for file in found)


COCO = Layout(
    "COCO: annotations/instances_{train,val}2017.json (or {train,val,test}) and a folder of images for each",
    _is_coco,
    splits,
    open_reader,
)
NWPU = Layout(
    "NWPU VHR-10: 'positive image set/' and annotations.json",
    lambda path: (path / "positive image set").is_dir(),
    splits,
    open_reader,
    held_out=0.3,
)
