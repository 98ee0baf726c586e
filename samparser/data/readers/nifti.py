"""CT volumes with organ labels as NIfTI files: FLARE22, AbdomenCT-1K, and whatever is named as nnU-Net names it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from samparser._extras import require

from ..sample import DataError, Sample, Skipped
from ..settings import DataSettings
from .labels import parse_class_names, separate
from .reader import Layout, class_ids

FLARE22 = (
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip
ABDOMEN_1K = ("liver", "kidney", "spleen", "pancreas")
CT_MIN_AREA = 100
_IMAGE_NAME = re.compile(r"_0000\.nii(\.gz)?$")
_SUFFIXES = (".nii.gz", ".nii")


class NiftiReader:
    """Axial slices of CT volumes: Hounsfield units within a window as grey, one instance per organ and slice.

    Slices are turned so that the patient's right is at the image's left and the front is at the top, whatever the
    orientation of the file; they count from the feet upwards. Slices without a large enough organ are left out, for
    which the label volumes are read once at the start.

    Args:
        pairs: (image, label) files.
        classes: Label value -> organ.
        root: Names of volumes are paths relative to this folder.
        window: (level, width) in Hounsfield units.
        min_area: Organs of fewer pixels in a slice do not count.
        keep: Names of the organs that count; None counts all.
    """

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        classes: dict[int, str],
        root: Path,
        window: tuple[float, float],
        min_area: int,
        keep: Sequence[str] | None = None,
    ) -> None:
        self.classes = classes
        kept = class_ids(classes, keep) or classes.keys()
        self.skipped: list[Skipped] = []
        self.names: list[str] = []
        self._window = window
        self._slices: list[tuple[Path, Path, str, int]] = []
        for image, label in pairs:
            volume = _stem(image.relative_to(root).as_posix())
            try:
                areas = _slice_areas(label, _changed(label))
                if _shape(image) != _shape(label):
                    raise DataError(
                        f"{image.name} has {_shape(image)} voxels, {label.name} {_shape(label)}; they must be the same."
                    )
            except DataError as error:
                self.skipped.append(Skipped(str(image), str(error)))
                continue
            strange = {value for counts in areas for value in counts} - classes.keys()
            if strange:
                raise DataError(
                    f"{label} has the label {sorted(strange)[0]}, which names no organ; known are "
                    f"{', '.join(f'{i}={name}' for i, name in classes.items())}. Say what it is in class_names."
                )
            for number, counts in enumerate(areas):
                name = f"{volume}#{number:04d}"
                if max((n for value, n in counts.items() if value in kept), default=0) >= min_area:
                    self.names.append(name)
                    self._slices.append((image, label, volume, number))
                else:
                    self.skipped.append(Skipped(name, f"slice without an organ of {min_area} px"))

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return slice `index` as a sample that knows its volume and place in it."""
        image, label, volume, number = self._slices[index]
        hounsfield = _axial(image, number).astype(np.float32)
        if not np.isfinite(hounsfield).all():
            raise DataError(f"{image} holds values that are not finite in slice {number}.")
        level, width = self._window
        grey = np.clip((hounsfield - (level - width / 2)) / width * 255 + 0.5, 0, 255).astype(np.uint8)
        labels = np.round(_axial(label, number)).astype(np.int64)
        instances = separate(labels, by_component=False)
        picture = np.repeat(grey[:, :, None], 3, axis=2)
        return Sample(self.names[index], picture, tuple(instances), volume=volume, slice_index=number), []


def _changed(path: Path) -> int:
    """Return when a file was last written: a volume that was corrected is not taken from a cache."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        raise DataError(f"{path} does not exist.") from None


def _open(path: Path) -> Any:
    """Return a volume's header and the way to its values."""
    return _opened(path, _changed(path))


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> Any:
    nibabel = require("nibabel", "Reading CT volumes", extra="medical")
    try:
        volume = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} does not open as NIfTI: {error}.") from error
    if len(volume.shape) != 3:
        raise DataError(f"{path} has {len(volume.shape)} dimensions; a CT volume has 3.")
    return volume


@lru_cache(maxsize=2)
def _gunzipped(path: Path, changed: int) -> np.ndarray:
    """Return all stored values of a compressed volume, which has no quick way to a single slice."""
    return np.asanyarray(_open(path).dataobj.get_unscaled())


def _plane(path: Path, place: tuple[Any, ...]) -> np.ndarray:
    """Return a part of a volume, scaled as its header says."""
    stored = _open(path).dataobj
    try:
        if not path.name.endswith(".gz"):
            return np.asanyarray(stored[place])
        return _gunzipped(path, _changed(path))[place] * stored.slope + stored.inter
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged or incomplete: {error}.") from error


def _shape(path: Path) -> tuple[int, ...]:
    return tuple(_open(path).shape)


def _axes(path: Path) -> np.ndarray:
    """Return (3, 2): which of the file's axes runs along right, front and head; 1 if towards it, -1 if away."""
    nibabel = require("nibabel", "Reading CT volumes", extra="medical")
    orientation = nibabel.orientations.io_orientation(_open(path).affine)
    if np.isnan(orientation).any():
        raise DataError(f"{path} has an affine matrix that gives no orientation.")
    order = np.argsort(orientation[:, 0])
    return np.stack([order, orientation[order, 1]], axis=1).astype(int)


def _axial(path: Path, number: int) -> np.ndarray:
    """Return axial slice `number` from the feet: rows from front to back, columns from the patient's right to left."""
    (across, to_right), (down, to_front), (up, to_head) = _axes(path)
    depth = _shape(path)[up]
    place: list[Any] = [slice(None)] * 3
    place[up] = number if to_head > 0 else depth - 1 - number
    plane = _plane(path, tuple(place))
    if across < down:
        plane = plane.T
    return plane[:: -1 if to_front > 0 else 1, :: -1 if to_right > 0 else 1]


@lru_cache(maxsize=4096)
def _slice_areas(label: Path, changed: int) -> list[dict[int, int]]:
    """Count the pixels of each label in each axial slice, from the feet."""
    counts = []
    for number in range(_shape(label)[_axes(label)[2, 0]]):
        plane = _axial(label, number)
        values, areas = np.unique(plane, return_counts=True)
        if not np.array_equal(values, np.round(values)) or (len(values) and values[0] < 0):
            raise DataError(f"{label} holds values such as {values[0]:g}; labels are whole numbers from 0.")
        counts.append({int(v): int(n) for v, n in zip(values, areas, strict=True) if v != 0})
    return counts


def _is_nifti(path: Path) -> bool:
    return path.name.endswith(_SUFFIXES) and not path.name.startswith(".")


def _stem(name: str) -> str:
    return re.sub(r"(_0000)?\.nii(\.gz)?$", "", name)


def find_pairs(root: Path) -> tuple[list[tuple[Path, Path]], list[Skipped]]:
    """Return (image, label) files, CASE_0000.nii.gz beside some CASE.nii.gz, and the images without a label."""
    files = sorted(path for path in root.rglob("*.nii*") if _is_nifti(path))
    images = [path for path in files if _IMAGE_NAME.search(path.name)]
    others = [path for path in files if not _IMAGE_NAME.search(path.name)]
    labels = {_stem(path.name): path for path in others}
    repeated = [stem for stem, times in Counter(_stem(path.name) for path in others).items() if times > 1]
    if repeated:
        raise DataError(f"Several label files below {root} have the name {repeated[0]}.nii.gz; keep one of them.")
    pairs = [(image, labels[_stem(image.name)]) for image in images if _stem(image.name) in labels]
    skipped = [Skipped(str(image), "no label volume") for image in images if _stem(image.name) not in labels]
    return pairs, skipped


def recognise(root: Path) -> bool:
    """Tell whether there are NIfTI files in this folder or in those directly below it."""
    return root.is_dir() and any(_is_nifti(path) for pattern in ("*.nii*", "*/*.nii*") for path in root.glob(pattern))


def _class_table(root: Path, pairs: list[tuple[Path, Path]], settings: DataSettings) -> dict[int, str]:
    classes, _ = parse_class_names(settings.class_names)
    if classes is not None:
        return classes
    described = root / "dataset.json"
    if described.is_file():
        try:
            labels = json.loads(described.read_text("utf-8"))["labels"]
            # nnU-Net 1 writes {"1": "liver"}, nnU-Net 2 {"liver": 1}.
            table = {int(k): str(v) if str(k).isdigit() else None for k, v in labels.items() if str(k).isdigit()}
            table = table or {int(v): str(k) for k, v in labels.items()}
            return {i: str(name) for i, name in sorted(table.items()) if i != 0}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{described} has no labels as nnU-Net writes them: {error}.") from error
    return dict(enumerate(ABDOMEN_1K if pairs[0][1].name.startswith("Case_") else FLARE22, start=1))


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return none: CT sets are one pool of slices, divided at random as the paper does."""
    return ()


def open_reader(root: Path, settings: DataSettings, split: str | None) -> NiftiReader:
    """Return the reader of all volumes below a folder."""
    pairs, skipped = find_pairs(root)
    if not pairs:
        raise DataError(
            f"No pair of volumes was found below {root}. Images are named CASE_0000.nii.gz and labels CASE.nii.gz, in "
            f"any folders: FLARE22's images/ and labels/, AbdomenCT-1K's Mask/, nnU-Net's imagesTr/ and labelsTr/."
        )
    window = (settings.window_level, settings.window_width)
    reader = NiftiReader(
        pairs, _class_table(root, pairs, settings), root, window, settings.min_area or CT_MIN_AREA, settings.classes
    )
    reader.skipped += skipped
    return reader


LAYOUT = Layout(
    "CT volumes: CASE_0000.nii.gz and CASE.nii.gz, as FLARE22, AbdomenCT-1K and nnU-Net name them",
    recognise,
    splits,
    open_reader,
    min_area=CT_MIN_AREA,
)
