"""COCO JSON, in the folder layouts of COCO2017, NWPU VHR-10, SSDD and anyone's own export."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..sample import DataError, Instance, Sample, Skipped
from .coco_index import CocoFile, CocoImage, index_coco
from .images import read_image
from .reader import class_ids
from .segmentations import BadMask, annotation_mask


class CocoReader:
    """Samples of one COCO JSON file.

    Args:
        path: The JSON file.
        folders: Where its images may lie; the first folder that holds one of them is taken.
        root: Names of samples are paths relative to this folder.
        keep: Names of the classes to keep; images without any of them are left out. None keeps all.

    Raises:
        DataError: The file is not COCO's, its annotations name classes or images that it does not list, or none of
            its images is found.
    """

    def __init__(self, path: Path, folders: Sequence[Path], root: Path, keep: Sequence[str] | None = None) -> None:
        self._file = file = index_coco(path)
        self.classes = file.categories
        self.skipped: list[Skipped] = []
        self._folder = _image_folder(file, folders)
        self._images, self._numbers = self._pair(class_ids(self.classes, keep))
        self.names: list[str] = [_relative(self._folder / image.file_name, root) for image in self._images]
        repeated = [name for name, times in Counter(self.names).items() if times > 1]
        if repeated:
            raise DataError(
                f"{path} lists {len(repeated)} image files more than once, {repeated[0]} for instance. Merge their "
                f"entries under one image id."
            )

    def _pair(self, keep: frozenset[int] | None) -> tuple[list[CocoImage], list[np.ndarray]]:
        """Return the images with an annotation to show, and the numbers of each one's annotations."""
        file = self._file
        usable = ~file.crowd & file.segmented
        for number in np.flatnonzero(~usable).tolist():
            image = file.images[file.image[number]]
            why = "crowd region" if file.crowd[number] else "no segmentation, only a box"
            self.skipped.append(Skipped(f"{image.file_name}: annotation number {number}", why))
        if len(usable) and not file.segmented.any():
            raise DataError(f"{file.path} has boxes but no segmentations, so there is no mask to learn from.")
        numbers = np.flatnonzero(usable if keep is None else usable & np.isin(file.category_id, list(keep)))
        numbers = numbers[np.argsort(file.image[numbers], kind="stable")]
        bounds = np.searchsorted(file.image[numbers], np.arange(len(file.images) + 1))
        present = _Listing()
        images, grouped = [], []
        for n, image in enumerate(file.images):
            mine = numbers[bounds[n] : bounds[n + 1]]
            if not present.has(self._folder / image.file_name):
                self.skipped.append(Skipped(image.file_name, "image file missing"))
            elif len(mine) == 0:
                why = "no instance of the chosen classes" if keep else "no instance"
                self.skipped.append(Skipped(image.file_name, why))
            else:
                images.append(image)
                grouped.append(mine)
        return images, grouped

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index` with its annotations drawn; those that cannot be drawn or are empty are left out."""
        entry, name = self._images[index], self.names[index]
        image = read_image(self._folder / entry.file_name)
        height, width = image.shape[:2]
        _check_size(entry, height, width, name, self._file.path)
        instances, skipped, seen = [], [], set()
        numbers = self._numbers[index]
        for number, annotation in zip(numbers.tolist(), self._file.annotations(numbers), strict=True):
            id = str(annotation.get("id", f"number {number}"))
            if id in seen:
                id = f"{id} (number {number})"
            seen.add(id)
            try:
                mask = annotation_mask(annotation["segmentation"], height, width)
            except BadMask as error:
                skipped.append(Skipped(f"{name}: annotation {id}", str(error)))
                continue
            instance = Instance.from_mask(mask, int(self._file.category_id[number]), id)
            if instance is None:
                skipped.append(Skipped(f"{name}: annotation {id}", _why_empty(annotation.get("bbox"), height, width)))
            else:
                instances.append(instance)
        return Sample(name, image, tuple(instances)), skipped


class _Listing:
    """Tell whether files exist, by listing each folder once: a call per file is slow on network disks."""

    def __init__(self) -> None:
        self._folders: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._folders:
            try:
                self._folders[folder] = set(os.listdir(folder))
            except OSError:
                self._folders[folder] = set()
        return path.name in self._folders[folder]


def _image_folder(file: CocoFile, folders: Sequence[Path]) -> Path:
    if not file.images:
        raise DataError(f"{file.path} lists no image.")
    present = _Listing()
    for folder in folders:
        if any(present.has(folder / image.file_name) for image in file.images):
            return folder
    looked = "\n  ".join(str(folder) for folder in folders)
    raise DataError(
        f"None of the {len(file.images)} images of {file.path} was found ({file.images[0].file_name} is the first). "
        f"Looked in\n  {looked}\nName the folder with the images setting."
    )


def _check_size(entry: CocoImage, height: int, width: int, name: str, path: Path) -> None:
    said = (entry.height, entry.width)
    if None in said or said == (height, width):
        return
    if said == (width, height):
        cause = (
            "They seem to be drawn on the picture before its EXIF rotation: store the picture turned as the "
            "annotations have it, without an EXIF orientation."
        )
    else:
        cause = "Was the image resized after it was annotated?"
    raise DataError(
        f"{name} has {width} x {height} px, but {path.name} says {said[1]} x {said[0]}: its annotations would not lie "
        f"on the objects. {cause}"
    )


def _why_empty(box: object, height: int, width: int) -> str:
    if isinstance(box, list) and len(box) == 4:
        x, y, w, h = box
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return "outside of the image"
    return "empty mask"


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
