"""COCO JSON, in the folder layouts of COCO2017, NWPU VHR-10, SSDD and anyone's own export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samparser._words import count

from ..columns import Column, Texts
from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError, Instance, Sample, Skipped, warn
from .coco_images import ImageFiles, relative_name
from .coco_index import index_coco
from .images import read_image
from .reader import class_ids
from .segmentations import BadMask, NormalisedPolygon, annotation_mask


class CocoReader:
    """Samples of one COCO JSON file.

    Args:
        path: The JSON file.
        folders: Where its images may lie; the first folder that holds one of them is taken.
        root: Names of samples are paths relative to this folder.
        keep: Names of the classes to keep; images without any of them are left out. None keeps all.
        crowds: Keep annotations with iscrowd set; None keeps them where the mark means nothing.
        intensity: How images of more than 8 bits are shown.

    Raises:
        DataError: The file is not COCO's, its annotations name classes or images that it does not list, or none of
            its images is found.
    """

    def __init__(
        self,
        path: Path,
        folders: Sequence[Path],
        root: Path,
        keep: Sequence[str] | None = None,
        crowds: bool | None = None,
        intensity: Intensity = EACH_BY_ITSELF,
    ) -> None:
        self._intensity = intensity
        self._file = file = index_coco(path)
        self.classes = file.categories
        self.skipped: list[Skipped] = []
        if not len(file.names):
            raise DataError(f"{path} lists no image.")
        names = list(file.names)
        files = ImageFiles(names, folders)
        if files.folder is None:
            looked = "\n  ".join(str(folder) for folder in folders)
            raise DataError(
                f"None of the {len(names)} images of {path} was found ({names[0]} is the first), "
                f"nor a file with the end of its name. Looked in\n  {looked}\nName the folder with the images setting."
            )
        self._folder = files.folder
        self._elsewhere: dict[int, Path] = {}
        self._group(self._crowd(crowds), class_ids(self.classes, keep))
        self._find(names, files, chosen=bool(keep))
        self.names = self._named(names, root)
        repeated = [name for name, times in Counter(self.names).items() if times > 1]
        if repeated:
            raise DataError(
                f"{path} lists {len(repeated)} image files more than once, {repeated[0]} for instance. Merge their "
                f"entries under one image id."
            )
        self._warn(files)

    def _warn(self, files: ImageFiles) -> None:
        """Warn, once for the whole file, of images that are not where it says or not in the folder of the images."""
        if files.moved:
            name, found = files.moved[0]
            warn(
                f"{self._file.path} names {count(len(files.moved), 'image')} that the folder does not hold; files "
                f"with the same end of their name are taken, {found} for {name!r}."
            )
        if files.outside:
            warn(
                f"{self._file.path} names {count(len(files.outside), 'image')} outside of {files.folder}, "
                f"{files.outside[0]} for instance; they are read all the same."
            )

    def _crowd(self, keep: bool | None) -> np.ndarray:
        """Return bool (A,): the annotations that are regions and not objects."""
        file = self._file
        crowd, runs, brush = file.crowd.values, file.runs.values, file.brush.values
        if keep is not None:
            return np.zeros_like(crowd) if keep else crowd
        # CVAT sets iscrowd for every brush mask. COCO itself has few crowds, beside many objects.
        of_brush = crowd & runs
        marked = of_brush if of_brush[file.segmented.values].all() else of_brush & brush
        if marked.any():
            warn(
                f"{file.path} sets iscrowd for {count(int(marked.sum()), 'brush mask')}; they are kept as objects. "
                f"Set crowds to false to leave them out."
            )
        return crowd & ~marked

    def _group(self, crowd: np.ndarray, keep: frozenset[int] | None) -> None:
        """Sort the annotations that can be shown by their images, and note those that cannot."""
        file = self._file
        image, segmented = file.image.values, file.segmented.values
        usable = ~crowd & segmented
        for number in np.flatnonzero(~usable).tolist():
            why = "crowd region" if crowd[number] else "no segmentation, only a box"
            self.skipped.append(Skipped(f"{file.names[image[number]]}: annotation number {number}", why))
        if len(usable) and not segmented.any():
            raise DataError(f"{file.path} has boxes but no segmentations, so there is no mask to learn from.")
        numbers = np.flatnonzero(usable if keep is None else usable & np.isin(file.category_id.values, list(keep)))
        numbers = numbers[np.argsort(image[numbers], kind="stable")]
        bounds = np.searchsorted(image[numbers], np.arange(len(file.names) + 1))
        # Annotations _bounds[n] to _bounds[n + 1] of _numbers are those of the file's image n.
        self._numbers, self._bounds = Column(numbers), Column(bounds)

    def _find(self, names: list[str], files: ImageFiles, *, chosen: bool) -> None:
        """Choose the images that are there and have an annotation to show."""
        none_there = "no instance of the chosen classes" if chosen else "no instance"
        places = []
        for place, shown in enumerate(np.diff(self._bounds.values).tolist()):
            name = names[place]
            if not files.holds(name):
                path = files.find(name)
                if path is None:
                    self.skipped.append(Skipped(name, "image file missing"))
                    continue
                self._elsewhere[place] = path
            if shown:
                places.append(place)
            else:
                self.skipped.append(Skipped(name, none_there))
        self._places = Column(np.array(places, dtype=np.int32))

    def _named(self, names: list[str], root: Path) -> Texts:
        """Return the names of the chosen images relative to the data set's root."""
        folder = relative_name(self._folder, root)
        start = "" if folder == "." else f"{folder}/"
        elsewhere = {place: relative_name(path, root) for place, path in self._elsewhere.items()}
        return Texts(elsewhere.get(place) or start + names[place] for place in self._places.values.tolist())

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index` with its annotations drawn; those that cannot be drawn or are empty are left out."""
        place, name = int(self._places.values[index]), self.names[index]
        image = read_image(self._elsewhere.get(place) or self._folder / self._file.names[place], self._intensity)
        height, width = image.shape[:2]
        _check_size(self._file.size(place), height, width, name, self._file.path)
        instances, skipped, seen, normalised = [], [], set(), []
        first, last = self._bounds.values[place : place + 2].tolist()
        numbers = self._numbers.values[first:last]
        for number, annotation in zip(numbers.tolist(), self._file.annotations(numbers), strict=True):
            id = str(annotation.get("id", f"number {number}"))
            if id in seen:
                id = f"{id} (number {number})"
            seen.add(id)
            try:
                mask = annotation_mask(annotation["segmentation"], height, width)
            except BadMask as error:
                normalised += [id] if isinstance(error, NormalisedPolygon) else []
                skipped.append(Skipped(f"{name}: annotation {id}", str(error)))
                continue
            instance = Instance.from_mask(mask, int(self._file.category_id.values[number]), id)
            if instance is None:
                skipped.append(Skipped(f"{name}: annotation {id}", _why_empty(annotation.get("bbox"), height, width)))
            else:
                instances.append(instance)
        if normalised and not instances:
            raise DataError(
                f"{name}: annotation {normalised[0]} of {self._file.path.name} has coordinates between 0 and 1. They "
                f"seem normalised; COCO's are pixels: multiply x by the image's width and y by its height."
            )
        return Sample(name, image, tuple(instances)), skipped


def _check_size(said: tuple[Any, Any], height: int, width: int, name: str, path: Path) -> None:
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
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box):
        x, y, w, h = box
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return "outside of the image"
    return "empty mask"
