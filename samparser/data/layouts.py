"""Which layout a data set has, and the data set of one split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .dataset import SegmentationDataset
from .readers import coco_layout, folders, nifti, ssdd, voc
from .readers.reader import Reader, class_ids, merge_classes
from .sample import DataError, Skipped
from .settings import SPLITS, DataSettings
from .splits import drawn, listed, read_split_file


class Layout(NamedTuple):
    """How one kind of data set is found and read.

    Attributes:
        looks_like: What its folder holds, for messages.
        recognise: Whether a folder or file has this layout.
        splits: The splits that a data set has of its own; empty if it is one pool.
        open_reader: The reader of a split, or of the pool for None.
        held_out: Part of a pool that becomes val.
        min_area: Smallest instance in pixels.
    """

    looks_like: str
    recognise: Callable[[Path], bool]
    splits: Callable[[Path, DataSettings], tuple[str, ...]]
    open_reader: Callable[[Path, DataSettings, str | None], Reader]
    held_out: float = 0.2
    min_area: int = 1


def _is_coco(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() == ".json"
    return bool(coco_layout.find_files(path)) or coco_layout.find_pool(path) is not None


_ANYWHERE = DataSettings(data="")
# In the order in which they are tried: the more particular first.
LAYOUTS: dict[str, Layout] = {
    "nwpu": Layout(
        "NWPU VHR-10: 'positive image set/' and annotations.json",
        lambda path: (path / "positive image set").is_dir(),
        coco_layout.splits,
        coco_layout.open_reader,
        held_out=0.3,
    ),
    "voc": Layout(
        "VOC2012: VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,SegmentationObject,ImageSets/Segmentation}",
        lambda path: voc.find_folder(path) is not None,
        voc.splits,
        voc.open_reader,
    ),
    "ssdd": Layout(
        "SSDD: PSeg_SSDD/{coco_style,voc_style}, or annotations/SSDD_instances_{train,val}.json",
        ssdd.recognise,
        ssdd.splits,
        ssdd.open_reader,
    ),
    "nifti": Layout(
        "CT volumes: CASE_0000.nii.gz and CASE.nii.gz, as FLARE22, AbdomenCT-1K and nnU-Net name them",
        nifti.recognise,
        nifti.splits,
        nifti.open_reader,
        min_area=nifti.CT_MIN_AREA,
    ),
    "whu": Layout(
        "WHU building: {train,val,test}/{image,label}/*.tif",
        folders.is_whu,
        folders.splits,
        folders.open_whu,
    ),
    "coco": Layout(
        "COCO: annotations/instances_{train,val}2017.json (or {train,val,test}) and a folder of images for each",
        _is_coco,
        coco_layout.splits,
        coco_layout.open_reader,
    ),
    "folders": Layout(
        "a folder of images beside one of masks: images/ and masks/, each with or inside train/ and val/",
        lambda path: folders.splits(path, _ANYWHERE) != () or folders.find_folders(path, _ANYWHERE, None) is not None,
        folders.splits,
        folders.open_reader,
    ),
}


def detect_layout(path: str | Path) -> str:
    """The name of the layout that the folder (or COCO file) at ``path`` has.

    Raises:
        DataError: It does not exist, or looks like none of them.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist.")
    for name, layout in LAYOUTS.items():
        if layout.recognise(path):
            return name
    held = sorted(p.name + "/" * p.is_dir() for p in path.iterdir())[:12] if path.is_dir() else []
    known = "\n  ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    raise DataError(
        f"The layout of {path} is not known. It holds {', '.join(held) or 'nothing that can be listed'}. Layouts:\n"
        f"  {known}\nArrange the files like one of these, or name the parts with the annotations, images and masks "
        f"settings."
    )


def open_dataset(settings: DataSettings, split: str) -> SegmentationDataset:
    """The data set of one split. Opens annotation files, but no image.

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
    name = _layout_name(root, settings)
    layout = LAYOUTS[name]
    parts, skipped = _parts(root, settings, layout, split)
    keep = class_ids(merge_classes(reader.classes for reader, _ in parts), settings.classes)
    dataset = SegmentationDataset(
        parts,
        root=root,
        layout=name,
        split=split,
        min_area=settings.min_area or layout.min_area,
        keep=keep,
    )
    dataset.skipped += skipped
    if settings.limit is not None and settings.limit < len(dataset):
        chosen = np.random.default_rng([settings.split_seed, 1]).permutation(len(dataset))[: settings.limit]
        dataset = dataset.subset(sorted(chosen.tolist()))
    if settings.scan:
        dataset = dataset.scanned()
    if len(dataset) == 0 and not dataset.skipped:
        raise DataError(
            f"The {split} split of {root} is empty: its ratio of the images that there are comes to none. Set "
            f"val_ratio (or test_ratio) higher, or name the images of each split in a split_file."
        )
    if len(dataset) == 0:
        reasons = Counter(skip.why for skip in dataset.skipped).most_common(5)
        listed = "; ".join(f"{why}: {count}" for why, count in reasons) or "nothing was found to read"
        raise DataError(f"No image with an instance is left in the {split} split of {root}. Left out: {listed}.")
    return dataset


def available_splits(settings: DataSettings) -> tuple[str, ...]:
    """The splits that `open_dataset` has for these settings: the data set's own, or those that it would draw."""
    root = Path(settings.data)
    own = () if settings.split_file else LAYOUTS[_layout_name(root, settings)].splits(root, settings)
    if own:
        return own if "val" in own or settings.val_ratio is None else ("train", "val", *own[1:])
    if settings.split_file:
        base = root.parent if root.is_file() else root
        return tuple(part for part in SPLITS if part in read_split_file(base, settings.split_file))
    drawn = ("train",) if settings.val_ratio == 0 else ("train", "val")
    return (*drawn, "test") if settings.test_ratio else drawn


def _layout_name(root: Path, settings: DataSettings) -> str:
    if not root.exists():
        raise DataError(f"The data folder {root} does not exist.")
    if settings.layout == "auto":
        if settings.annotations:
            return "coco"
        if settings.masks:
            return "folders"
        return detect_layout(root)
    if settings.layout not in LAYOUTS:
        raise ValueError(f"layout must be auto or one of {', '.join(LAYOUTS)}, got {settings.layout!r}.")
    return settings.layout


Parts = list[tuple[Reader, Sequence[int]]]


def _parts(root: Path, settings: DataSettings, layout: Layout, split: str) -> tuple[Parts, list[Skipped]]:
    """The readers of a split with the samples to take from each, and what a split file left out."""
    own = () if settings.split_file else layout.splits(root, settings)
    if not own:
        reader = layout.open_reader(root, settings, None)
        if split == "all":
            return [(reader, range(len(reader.names)))], []
        if settings.split_file:
            return [(reader, listed(root, settings, reader, split))], []
        ratio = layout.held_out if settings.val_ratio is None else settings.val_ratio
        return [(reader, drawn(reader.names, ratio, settings)[split])], []
    if split == "all":
        readers = [layout.open_reader(root, settings, part) for part in own]
        return [(reader, range(len(reader.names))) for reader in readers], []
    if settings.val_ratio is not None and "val" not in own and split in ("train", "val"):
        reader = layout.open_reader(root, settings, "train")
        return [(reader, drawn(reader.names, settings.val_ratio, replace(settings, test_ratio=0.0))[split])], []
    if split not in own:
        advice = " Set val_ratio to hold out a part of train as val." if split == "val" and "train" in own else ""
        raise DataError(f"{root} has no {split} split; it has {', '.join(own)}.{advice}")
    reader = layout.open_reader(root, settings, split)
    return [(reader, range(len(reader.names)))], []
