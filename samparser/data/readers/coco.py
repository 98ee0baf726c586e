"""COCO JSON, in the folder layouts of COCO2017, NWPU VHR-10, SSDD and anyone's own export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samparser._words import count

from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError, Instance, Sample, Skipped, warn
from .coco_images import ImageFiles, relative_name
from .coco_index import CocoImage, index_coco
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
        if not file.images:
            raise DataError(f"{path} lists no image.")
        files = ImageFiles([image.file_name for image in file.images], folders)
        if files.folder is None:
            looked = "\n  ".join(str(folder) for folder in folders)
            raise DataError(
                f"None of the {len(file.images)} images of {path} was found ({file.images[0].file_name} is the first), "
                f"nor a file with the end of its name. Looked in\n  {looked}\nName the folder with the images setting."
            )
        crowd = self._crowd(crowds)
        self._images, self._numbers = self._pair(files, crowd, class_ids(self.classes, keep))
        self.names: list[str] = [relative_name(image, root) for image, _ in self._images]
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
        if keep is not None:
            return np.zeros_like(file.crowd) if keep else file.crowd
        # CVAT sets iscrowd for every brush mask. COCO itself has few crowds, beside many objects.
        of_brush = file.crowd & file.runs
        marked = of_brush if of_brush[file.segmented].all() else of_brush & file.brush
        if marked.any():
            warn(
                f"{file.path} sets iscrowd for {count(int(marked.sum()), 'brush mask')}; they are kept as objects. "
                f"Set crowds to false to leave them out."
            )
        return file.crowd & ~marked

    def _pair(
        self, files: ImageFiles, crowd: np.ndarray, keep: frozenset[int] | None
    ) -> tuple[list[tuple[Path, CocoImage]], list[np.ndarray]]:
        """Return the images with an annotation to show, and the numbers of each one's annotations."""
        file = self._file
        usable = ~crowd & file.segmented
        for number in np.flatnonzero(~usable).tolist():
            image = file.images[file.image[number]]
            why = "crowd region" if crowd[number] else "no segmentation, only a box"
            self.skipped.append(Skipped(f"{image.file_name}: annotation number {number}", why))
        if len(usable) and not file.segmented.any():
            raise DataError(f"{file.path} has boxes but no segmentations, so there is no mask to learn from.")
        numbers = np.flatnonzero(usable if keep is None else usable & np.isin(file.category_id, list(keep)))
        numbers = numbers[np.argsort(file.image[numbers], kind="stable")]
        bounds = np.searchsorted(file.image[numbers], np.arange(len(file.images) + 1))
        images, grouped = [], []
        for n, image in enumerate(file.images):
            mine = numbers[bounds[n] : bounds[n + 1]]
            path = files.find(image.file_name)
            if path is None:
                self.skipped.append(Skipped(image.file_name, "image file missing"))
            elif len(mine) == 0:
                why = "no instance of the chosen classes" if keep else "no instance"
                self.skipped.append(Skipped(image.file_name, why))
            else:
                images.append((path, image))
                grouped.append(mine)
        return images, grouped

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index` with its annotations drawn; those that cannot be drawn or are empty are left out."""
        (path, entry), name = self._images[index], self.names[index]
        image = read_image(path, self._intensity)
        height, width = image.shape[:2]
        _check_size(entry, height, width, name, self._file.path)
        instances, skipped, seen, normalised = [], [], set(), []
        numbers = self._numbers[index]
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
            instance = Instance.from_mask(mask, int(self._file.category_id[number]), id)
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
    if isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box):
        x, y, w, h = box
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return "outside of the image"
    return "empty mask"
