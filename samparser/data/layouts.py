"""Which layout a data set has, and the data set of one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from samparser._words import count, did_you_mean, shortened

from .dataset import SegmentationDataset
from .other_layouts import hint
from .readers import coco_layout, cvat, folders, hf_datasets, label_studio, labelme, nifti, ssdd, voc, yolo_layout
from .readers.reader import Layout, Reader, class_ids, merge_classes
from .sample import DataError
from .settings import SPLITS, DataSettings
from .splits import drawn, listed, read_split_file, volume_of

# In the order in which they are tried: the more particular first. Layouts added later are tried before these.
LAYOUTS: dict[str, Layout] = {
    "nwpu": coco_layout.NWPU,
    "voc": voc.LAYOUT,
    "ssdd": ssdd.LAYOUT,
    "nifti": nifti.LAYOUT,
    "whu": folders.WHU,
    "datasets": hf_datasets.LAYOUT,
    "coco": coco_layout.COCO,
    "cvat": cvat.LAYOUT,
    "labelstudio": label_studio.LAYOUT,
    "labelme": labelme.LAYOUT,
    "yolo": yolo_layout.LAYOUT,
    "folders": folders.FOLDERS,
}
_OURS = tuple(LAYOUTS)


def detect_layout(path: str | Path) -> str:
    """Return the name of the layout that the folder (or COCO file) at `path` has.

    Raises:
        DataError: It does not exist, or looks like none of them.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    for name in sorted(LAYOUTS, key=lambda name: name in _OURS):
        if LAYOUTS[name].recognise(path):
            return name
    held = sorted(p.name + "/" * p.is_dir() for p in path.iterdir()) if path.is_dir() else []
    known = "\n  ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    raise DataError(
        f"The layout of {path} is not known. It holds {shortened(held, 12)}.{hint(path)} Layouts:\n"
        f"  {known}\nArrange the files like one of these, or name the parts with the annotations, images and masks "
        f"settings."
    )


def open_dataset(settings: DataSettings, split: str) -> SegmentationDataset:
    """Return the data set of one split. Opens annotation files, but no image.

    Args:
        settings: Where and what to read.
        split: "train", "val", "test", or "all" for everything.

    Raises:
        DataError: Something is wrong with the data; the message says what, where, and what to do.
        ValueError: There is no such split or layout.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    root = Path(settings.data)
    name = layout_name(root, settings)
    layout = LAYOUTS[name]
    parts = _parts(root, settings, layout, split)
    return _finished(parts, root, name, split, settings)


def from_datasets(dataset: Any, settings: DataSettings | None = None, split: str = "train") -> SegmentationDataset:
    """Return the samples of a `datasets.Dataset`, or of a stream (`IterableDataset`), as a data set to train on.

    A stream is read once, at most `settings.limit` rows of it, and kept in memory with its pictures encoded.

    Args:
        dataset: Rows with an image beside a mask, or beside objects with a class and polygons, run lengths or masks.
        settings: What to take: `images` and `masks` name columns of other names than the usual ones, and `classes`,
            `class_names`, `instances`, `min_area`, `limit`, `scan` and the like mean what they mean for files.
        split: What the set is called.

    Raises:
        DataError: There are no such columns, or no such class.
        ImportError: `datasets` is not installed.
    """
    settings = settings or DataSettings(data=".")
    reader = hf_datasets.reader_of(hf_datasets.Rows(dataset, "", None, settings.limit), settings)
    return _finished([(reader, range(len(reader.names)))], Path("."), "datasets", split, settings)


def _finished(parts: Parts, root: Path, name: str, split: str, settings: DataSettings) -> SegmentationDataset:
    """Return the data set of readers, with what the settings leave of it."""
    keep = class_ids(merge_classes(reader.classes for reader, _ in parts), settings.classes)
    dataset = SegmentationDataset(
        parts,
        root=root,
        layout=name,
        split=split,
        min_area=settings.min_area or LAYOUTS[name].min_area,
        keep=keep,
    )
    if settings.limit is not None and settings.limit < len(dataset):
        chosen = np.random.default_rng([settings.split_seed, 1]).permutation(len(dataset))[: settings.limit]
        dataset = dataset.subset(sorted(chosen.tolist()))
    if settings.scan:
        dataset = dataset.scanned()
    if len(dataset) == 0:
        reasons = Counter(skip.why for skip in dataset.skipped).most_common(5)
        left_out = "; ".join(f"{why}: {times}" for why, times in reasons)
        raise DataError(f"No image with an instance is left in the {split} split of {root}. Left out: {left_out}.")
    return dataset


def available_splits(settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that `open_dataset` has for these settings: the data set's own, or those that it would draw."""
    root = Path(settings.data)
    own = () if settings.split_file else LAYOUTS[layout_name(root, settings)].splits(root, settings)
    if own:
        return own if "val" in own or settings.val_ratio is None else ("train", "val", *own[1:])
    if settings.split_file:
        base = root.parent if root.is_file() else root
        return tuple(part for part in SPLITS if part in read_split_file(base, settings.split_file))
    parts = ("train",) if settings.val_ratio == 0 else ("train", "val")
    return (*parts, "test") if settings.test_ratio else parts


def layout_name(root: Path, settings: DataSettings) -> str:
    """Return the layout that the settings name, or that the files have.

    Raises:
        DataError: There is no such folder, or it has none of the layouts.
        ValueError: There is no such layout.
    """
    if not root.exists():
        raise DataError(f"The data folder {root} does not exist.")
    if settings.layout == "auto":
        if settings.annotations:
            return "coco"
        if settings.masks and not hf_datasets.recognise(root):
            return "folders"
        return detect_layout(root)
    if settings.layout not in LAYOUTS:
        raise ValueError(
            f"layout must be auto or one of {', '.join(LAYOUTS)}, got {settings.layout!r}."
            + did_you_mean(settings.layout, LAYOUTS)
        )
    return settings.layout


Parts = list[tuple[Reader, Sequence[int]]]


def _parts(root: Path, settings: DataSettings, layout: Layout, split: str) -> Parts:
    """Return the readers of a split, each with the samples to take from it."""
    own = () if settings.split_file else layout.splits(root, settings)
    if not own:
        reader = layout.open_reader(root, settings, None)
        if split == "all":
            return [(reader, range(len(reader.names)))]
        if settings.split_file:
            return [(reader, listed(root, settings, reader, split))]
        ratio = layout.held_out if settings.val_ratio is None else settings.val_ratio
        return [(reader, _drawn(root, reader, ratio, settings, split))]
    if split == "all":
        readers = [layout.open_reader(root, settings, part) for part in own]
        return [(reader, range(len(reader.names))) for reader in readers]
    if settings.val_ratio is not None and "val" not in own and split in ("train", "val"):
        reader = layout.open_reader(root, settings, "train")
        return [(reader, _drawn(root, reader, settings.val_ratio, replace(settings, test_ratio=0.0), split))]
    if split not in own:
        advice = " Set val_ratio to hold out a part of train as val." if split == "val" and "train" in own else ""
        raise DataError(f"{root} has no {split} split; it has {', '.join(own)}.{advice}")
    reader = layout.open_reader(root, settings, split)
    return [(reader, range(len(reader.names)))]


def _drawn(root: Path, reader: Reader, ratio: float, settings: DataSettings, split: str) -> list[int]:
    indices = drawn(reader.names, ratio, settings)[split]
    if reader.names and not indices:
        volumes = {volume_of(name) for name in reader.names} if settings.split_volumes else set()
        by_volume = bool(volumes) and len(volumes) < len(reader.names)
        what = count(len(volumes), "volume") if by_volume else "images"
        raise DataError(
            f"The {split} split of {root} is empty: its ratio of the {what} that there are comes to none. Set "
            f"val_ratio (or test_ratio) higher, or name the images of each split in a split_file"
            + (", or set split_volumes to false to divide single slices." if by_volume else ".")
        )
    return indices
