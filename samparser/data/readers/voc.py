"""Pascal VOC's segmentation set: palette PNGs for classes and objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..sample import DataError, Instance, Sample, Skipped
from ..settings import DataSettings
from .images import read_image
from .labels import read_values, separate
from .reader import Layout

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255


class VocReader:
    """Samples of one list of VOC's ImageSets/Segmentation.

    An instance is an id of SegmentationObject; its class is the most frequent one of SegmentationClass below it. 255,
    the band around objects, is void.

    Args:
        folder: VOCdevkit/VOC2012.
        split: "train", "val" or "test".
        root: Names of samples are paths relative to this folder.
    """

    def __init__(self, folder: Path, split: str, root: Path) -> None:
        self.classes = dict(enumerate(VOC_CLASSES, start=1))
        self.skipped: list[Skipped] = []
        self._folder = folder
        listed = (folder / "ImageSets" / "Segmentation" / f"{split}.txt").read_text("utf-8").split()
        self._stems: list[str] = []
        there = {
            name: {path.stem for path in (folder / name).iterdir()} if (folder / name).is_dir() else set()
            for name in ("JPEGImages", "SegmentationClass", "SegmentationObject")
        }
        for stem in dict.fromkeys(listed):
            missing = [name for name, stems in there.items() if stem not in stems]
            if missing:
                self.skipped.append(Skipped(stem, f"no file in {' and '.join(missing)}"))
            else:
                self._stems.append(stem)
        if not self._stems:
            raise DataError(
                f"None of the {len(listed)} images of {split}.txt has files in JPEGImages, SegmentationClass and "
                f"SegmentationObject of {folder}."
            )
        self.names: list[str] = [(folder / "JPEGImages" / f"{s}.jpg").relative_to(root).as_posix() for s in self._stems]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; an object without any class below it is left out."""
        name, stem = self.names[index], self._stems[index]
        image = read_image(self._folder / "JPEGImages" / f"{stem}.jpg")
        objects, classes = (self._layer(layer, stem, image) for layer in ("SegmentationObject", "SegmentationClass"))
        void = objects == VOID
        instances, skipped = [], []
        for instance in separate(np.where(void, 0, objects), by_component=False):
            x0, y0, x1, y1 = instance.box
            below = np.bincount(classes[y0:y1, x0:x1][instance.mask], minlength=VOID + 1)
            below[[0, VOID]] = 0
            class_id = int(below.argmax())
            if below[class_id] == 0:
                skipped.append(Skipped(f"{name}: object {instance.id}", "object without a class"))
            elif class_id not in self.classes:
                raise DataError(f"{name}: SegmentationClass has the value {class_id}; VOC's classes are 1 to 20.")
            else:
                instances.append(Instance(instance.box, instance.mask, class_id, instance.id))
        return Sample(name, image, tuple(instances), void if void.any() else None), skipped

    def _layer(self, layer: str, stem: str, image: np.ndarray) -> np.ndarray:
        path = self._folder / layer / f"{stem}.png"
        values = read_values(path)
        if values.ndim == 3:
            raise DataError(
                f"{path} is a colour picture. VOC's are palette PNGs, whose indices are ids; use the originals."
            )
        if values.shape != image.shape[:2]:
            raise DataError(
                f"{path} has {values.shape[1]} x {values.shape[0]} px, but its image has {image.shape[1]} x "
                f"{image.shape[0]}."
            )
        return values


def find_folder(root: Path) -> Path | None:
    """Return the folder with JPEGImages below a root that may be it, VOCdevkit, or what holds VOCdevkit."""
    candidates = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    candidates += sorted(root.glob("VOC20*")) + sorted(root.glob("VOCdevkit/VOC20*"))
    for folder in candidates:
        if (folder / "SegmentationObject").is_dir() and (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    return None


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that have a list."""
    folder = find_folder(root)
    if folder is None:
        raise DataError(f"{root} holds no VOCdevkit/VOC2012 with SegmentationObject/ and ImageSets/Segmentation/.")
    lists = folder / "ImageSets" / "Segmentation"
    return tuple(split for split in ("train", "val", "test") if (lists / f"{split}.txt").is_file())


def open_reader(root: Path, settings: DataSettings, split: str | None) -> VocReader:
    """Return the reader of one split."""
    folder = find_folder(root)
    if folder is None or split is None:
        raise DataError(f"{root} has no lists in ImageSets/Segmentation; expected train.txt and val.txt.")
    return VocReader(folder, split, root)


LAYOUT = Layout(
    "VOC2012: VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,SegmentationObject,ImageSets/Segmentation}",
    lambda path: find_folder(path) is not None,
    splits,
    open_reader,
)
