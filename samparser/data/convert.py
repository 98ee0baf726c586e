"""A data set of any layout written in another one."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image
from tqdm.auto import tqdm

from samparser._files import replacing_folder
from samparser._words import count, did_you_mean

from .dataset import SegmentationDataset
from .layouts import LAYOUTS, available_splits, layout_name, open_dataset
from .readers.images import IMAGE_SUFFIXES
from .sample import DataError, Sample, Skipped
from .settings import DataSettings
from .writers.coco import CocoWriter
from .writers.cvat import CvatWriter
from .writers.label_studio import LabelStudioWriter
from .writers.labelme import LabelmeWriter
from .writers.masks import FoldersWriter, WhuWriter
from .writers.voc import VocWriter
from .writers.writer import Record, Writer
from .writers.yolo import YoloWriter

WRITERS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "labelme": LabelmeWriter,
    "cvat": CvatWriter,
    "labelstudio": LabelStudioWriter,
    "voc": VocWriter,
    "whu": WhuWriter,
    "folders": FoldersWriter,
}


@dataclass
class Conversion:
    """What `convert_dataset` wrote, and what it could not carry over. `str()` of it is a text of one screen.

    Attributes:
        out: The folder.
        format: Its layout.
        images: Split -> images; the split is "all" in a set without a division.
        instances: Split -> instances.
        lost: What the format cannot hold -> how many times it was met.
        skipped: What the reader left out.
        unreadable: Images that do not open or do not fit what is said of them, with the error.
        notes: What one has to know to use what was written.
    """

    out: Path
    format: str
    images: Counter[str] = field(default_factory=Counter)
    instances: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    unreadable: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.out} (layout {self.format})"]
        for split, images in self.images.items():
            lines.append(f"  {split:<6} {count(images, 'image')}, {count(self.instances[split], 'instance')}")
        lines += [f"  lost: {what}: {times:,}" for what, times in self.lost.items()]
        reasons = Counter(skip.why for skip in self.skipped)
        examples = {skip.why: skip.where for skip in reversed(self.skipped)}
        lines += [f"  left out: {why}: {times:,} ({examples[why]})" for why, times in reasons.most_common(8)]
        if len(reasons) > 8:
            lines.append(f"  and {len(reasons) - 8} more reasons; `samparser data check` lists them")
        lines += [f"  cannot be read, left out: {skip.why}" for skip in self.unreadable[:8]]
        if len(self.unreadable) > 8:
            lines.append(f"  and {len(self.unreadable) - 8:,} more images that cannot be read")
        lines += [f"  {note}" for note in self.notes]
        lines.append(
            "  Not carried over: scores, attributes, flags, ids of objects and whatever else is no mask or class."
        )
        return "\n".join(lines)


def convert_dataset(
    settings: DataSettings,
    out: str | Path,
    to: str,
    *,
    files: Literal["copy", "link"] = "copy",
    shapes: Literal["auto", "masks", "polygons"] = "auto",
    progress: bool = True,
) -> Conversion:
    """Write a data set in another layout: what training would see of it, with the names of its classes and its splits.

    Masks are exact in every format, and so are polygons, which go along the edges of pixels, where they are drawn as
    COCO's tools and this library draw them. A set without a division stays one, unless `settings` divide it.

    Args:
        settings: Where and what to read.
        out: Folder to write, new or empty. It appears when all of it is written, or not at all.
        to: One of `WRITERS`.
        files: Copy the images, or link to them. What is no image file of its own is written as PNG either way.
        shapes: What an object is written as where the format knows both; auto is masks.
        progress: Show a progress bar.

    Raises:
        DataError: Something is wrong with the data; what can be left out is, and is in the result.
        ValueError: There is no such format, or it does not know such shapes.
        FileExistsError: `out` is there and not empty.
    """
    if to not in WRITERS:
        raise ValueError(
            f"There is no format {to!r} to write; choose from {', '.join(WRITERS)}.{did_you_mean(to, WRITERS)}"
        )
    kind = WRITERS[to]
    if (shapes == "masks" and not kind.knows_masks) or (shapes == "polygons" and not kind.knows_outlines):
        possible = "masks" if kind.knows_masks else "polygons"
        raise ValueError(f"The format {to} has no {shapes}; leave shapes out, which writes {possible}.")
    result = Conversion(Path(out), to)
    splits = _splits(settings)
    sets = {split: open_dataset(settings, split or "all") for split in splits}
    classes = {class_id: name for dataset in sets.values() for class_id, name in dataset.classes.items()}
    if len(set(classes.values())) < len(classes):
        result.notes.append("Classes of one name are one class in formats that go by names.")
    with replacing_folder(out) as folder:
        writer = kind(folder, classes, as_outlines=shapes == "polygons" or not kind.knows_masks)
        places = _Places()
        for split, dataset in sets.items():
            result.skipped += dataset.skipped
            base = dataset.root.parent if dataset.root.is_file() else dataset.root
            bar = tqdm(range(len(dataset)), unit="image", desc=split, disable=not progress)
            for sample in _readable(dataset, bar, result):
                source = base / sample.name
                file = places.new(writer.image_folder(split), sample.name, source.is_file())
                _put(source, folder / file, sample, files)
                writer.add(Record(sample, file, split))
                result.images[split or "all"] += 1
                result.instances[split or "all"] += len(sample.instances)
                if sample.void is not None and not kind.knows_void:
                    result.lost["images with pixels of which nothing is known (void)"] += 1
        if not result.images:
            raise DataError(f"None of the images of {settings.data} can be read; `samparser data check` says why.")
        writer.finish()
        result.lost.update(writer.lost)
        result.notes += writer.notes
    return result


def _splits(settings: DataSettings) -> tuple[str | None, ...]:
    """Return the splits to write: those of the set, those that the settings ask for, or None for all in one."""
    root = Path(settings.data)
    asked = settings.split_file or settings.val_ratio is not None or settings.test_ratio
    if not asked and not LAYOUTS[layout_name(root, settings)].splits(root, settings):
        return (None,)
    return available_splits(settings)


def _readable(dataset: SegmentationDataset, indices: Iterable[int], result: Conversion) -> Iterator[Sample]:
    """Yield the samples that can be read; the others, and what is left out of a sample, are noted."""
    for index in indices:
        try:
            sample, left_out = dataset.examine(index)
        except DataError as error:
            result.unreadable.append(Skipped(dataset.names[index], str(error)))
            continue
        result.skipped += left_out
        yield sample


class _Places:
    """Names of image files that no other image of their folder has, with or without the suffix."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, folder: str, name: str, is_file: bool) -> Path:
        """Return where an image goes: its name without folders, with a number where that is taken."""
        path = PurePosixPath(name)
        suffix = path.suffix if is_file and path.suffix.lower() in IMAGE_SUFFIXES else ".png"
        stem = path.stem if path.suffix.lower() in {*IMAGE_SUFFIXES, ".json"} else path.name
        stem = re.sub(r"[^\w.()+ -]", "_", stem).strip(" .") or "image"
        number, free = 1, stem
        while f"{folder}/{free}".casefold() in self._taken:
            number += 1
            free = f"{stem}-{number}"
        self._taken.add(f"{folder}/{free}".casefold())
        return Path(folder, free + suffix)


def _put(source: Path, target: Path, sample: Sample, files: str) -> None:
    """Put an image into its place: the file itself, or what was read where the sample is no image file of its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (source.is_file() and source.suffix.lower() in IMAGE_SUFFIXES):
        Image.fromarray(sample.image).save(target)
    elif files == "link":
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
