"""CT volumes with organ labels as NIfTI files: FLARE22, AbdomenCT-1K, and whatever is named as nnU-Net names it."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from samparser._extras import require
from samparser._untrusted import parse_json

from ..sample import DataError, Sample, Skipped, warn
from ..settings import DataSettings
from .images import between
from .labels import parse_class_names, separate
from .paths import check_regular, is_hidden, read_text, visible_files
from .reader import Layout, class_ids

FLARE22 = (
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip
ABDOMEN_1K = ("liver", "kidney", "spleen", "pancreas")
CT_MIN_AREA = 100
CT_WINDOW = (40.0, 400.0)
# A volume is taken for one in Hounsfield units where one in 200 of its values is lower: air has -1000, fat -100. Fewer
# are what resampling leaves beside the edges of an MR volume.
HOUNSFIELD_BELOW = -50
GZIP_RATIO = 1100  # gzip cannot pack closer
_IMAGE_FOLDER, _LABEL_FOLDER = re.compile(r"im(g|age)", re.IGNORECASE), re.compile(r"label|mask|seg|gt", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"_0000\.nii(\.gz)?$")
_SUFFIXES = (".nii.gz", ".nii")


class NiftiReader:
    """Axial slices of CT volumes: Hounsfield units within a window as grey, one instance per organ and slice.

    Volumes of other values (MR, or scaled to 0 .. 1) are shown between percentiles of their own, with a warning, unless
    a window is given.

    Slices are turned so that the patient's right is at the image's left and the front is at the top, whatever the
    orientation of the file; they count from the feet upwards. Slices without a large enough organ are left out, for
    which the label volumes are read once at the start.

    Args:
        pairs: (image, label) files.
        classes: Label value -> organ.
        root: Names of volumes are paths relative to this folder.
        window: (level, width) in the units of the volume; None decides by the values of each volume.
        min_area: Organs of fewer pixels in a slice do not count.
        keep: Names of the organs that count; None counts all.
    """

    def __init__(
        self,
        pairs: list[tuple[Path, Path]],
        classes: dict[int, str],
        root: Path,
        window: tuple[float, float] | None,
        min_area: int,
        keep: Sequence[str] | None = None,
    ) -> None:
        self.classes = classes
        kept = class_ids(classes, keep) or classes.keys()
        self.skipped: list[Skipped] = []
        self.names: list[str] = []
        self._window = window
        self._slices: list[tuple[Path, Path, str, int]] = []
        self._told = False
        unnamed: list[DataError] = []
        for image, label in pairs:
            volume = _stem(image.relative_to(root).as_posix())
            try:
                areas = _slice_areas(label, _changed(label))
                if _shape(image) != _shape(label):
                    raise DataError(
                        f"{image.name} has {_shape(image)} voxels, {label.name} {_shape(label)}; they must be the same."
                    )
                _axes(image)
                strange = {value for counts in areas for value in counts} - classes.keys()
                if strange:
                    unnamed.append(_no_such_organ(label, min(strange), classes))
                    raise unnamed[-1]
            except DataError as error:
                self.skipped.append(Skipped(str(image), str(error)))
                continue
            for number, counts in enumerate(areas):
                name = f"{volume}#{number:04d}"
                if max((n for value, n in counts.items() if value in kept), default=0) >= min_area:
                    self.names.append(name)
                    self._slices.append((image, label, volume, number))
                else:
                    self.skipped.append(Skipped(name, f"slice without an organ of {min_area} px"))
        # A label without a name in one volume is a slip; in half of them the table of classes is another one.
        if 2 * len(unnamed) >= len(pairs):
            raise unnamed[0]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return slice `index` as a sample that knows its volume and place in it."""
        image, label, volume, number = self._slices[index]
        hounsfield = _axial(image, number).astype(np.float32)
        if not np.isfinite(hounsfield).all():
            raise DataError(f"{image} holds values that are not finite in slice {number}.")
        picture = between(hounsfield[:, :, None], *self._limits(image))
        labels = np.round(_axial(label, number)).astype(np.int64)
        instances = separate(labels, by_component=False)
        return Sample(self.names[index], picture, tuple(instances), volume=volume, slice_index=number), []

    def _limits(self, image: Path) -> tuple[float, float]:
        """Return the values of a volume that become black and white."""
        low, high = (0.0, 0.0) if self._window else _spread(image, _changed(image))
        if self._window or low <= HOUNSFIELD_BELOW:
            level, width = self._window or CT_WINDOW
            return level - width / 2, level + width / 2
        if not self._told:
            self._told = True
            warn(
                f"{image} holds hardly a value below {low:g}, so these are not Hounsfield units; it and volumes like "
                f"it are shown between the 0.5 and 99.5 percentiles of their own values other than 0, here {low:g} and "
                f"{high:g}. Set window_level and window_width for a window of your own."
            )
        return low, high


def _no_such_organ(label: Path, value: int, classes: dict[int, str]) -> DataError:
    return DataError(
        f"{label} has the label {value}, which names no organ; known are "
        f"{', '.join(f'{i}={name}' for i, name in classes.items())}. Say what it is in class_names."
    )


def _changed(path: Path) -> int:
    """Return when a file was last written: a volume that was corrected is not taken from a cache."""
    return check_regular(path).stat().st_mtime_ns


def _open(path: Path) -> Any:
    """Return a volume's header and the way to its values."""
    return _opened(path, _changed(path))


@lru_cache(maxsize=4)
def _opened(path: Path, changed: int) -> Any:
    nibabel = require("nibabel", "Reading CT volumes", extra="medical")
    try:
        volume = nibabel.load(path)
        kind, shape = volume.get_data_dtype(), volume.shape
    except Exception as error:  # nibabel has its own for each part of the header, besides those of gzip and of files
        raise DataError(f"{path} does not open as NIfTI: {error}.") from error
    if kind.kind not in "iufb":
        raise DataError(f"{path} holds colours or complex numbers ({kind}) and not one number a voxel.")
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise DataError(f"{path} has {len(shape)} dimensions ({' x '.join(map(str, shape))}); a CT volume has 3.")
    size, most = path.stat().st_size, GZIP_RATIO if path.name.endswith(".gz") else 1
    if kind.itemsize * math.prod(shape) > size * most:
        raise DataError(
            f"{path} is damaged or incomplete: its header speaks of {' x '.join(map(str, shape))} voxels, more than "
            f"its {size:,} bytes can hold."
        )
    return volume


@lru_cache(maxsize=2)
def _gunzipped(path: Path, changed: int) -> np.ndarray:
    """Return all stored values of a compressed volume, which has no quick way to a single slice."""
    return np.asanyarray(_open(path).dataobj.get_unscaled())


def _plane(path: Path, place: tuple[Any, ...]) -> np.ndarray:
    """Return a part of a volume, scaled as its header says."""
    volume = _open(path)
    stored = volume.dataobj
    place += (0,) * (len(volume.shape) - 3)  # further dimensions of length 1
    try:
        if not path.name.endswith(".gz"):
            return np.asanyarray(stored[place])
        return _gunzipped(path, _changed(path))[place] * stored.slope + stored.inter
    except (OSError, EOFError, ValueError, IndexError, OverflowError, zlib.error, MemoryError) as error:
        raise DataError(f"{path} is damaged or incomplete: {error}.") from error


def _shape(path: Path) -> tuple[int, ...]:
    return tuple(_open(path).shape[:3])


def _axes(path: Path) -> np.ndarray:
    """Return (3, 2): which of the file's axes runs along right, front and head; 1 if towards it, -1 if away."""
    nibabel = require("nibabel", "Reading CT volumes", extra="medical")
    affine = _open(path).affine
    orientation = nibabel.orientations.io_orientation(affine) if np.isfinite(affine).all() else np.array(np.nan)
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
def _spread(image: Path, changed: int) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentiles of a volume's values other than 0."""
    depth = _shape(image)[_axes(image)[2, 0]]
    slices = np.unique(np.linspace(0, depth - 1, min(depth, 32)).round().astype(int)).tolist()
    values = np.concatenate([_axial(image, number).ravel() for number in slices])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 0.0
    shown = values[values != 0] if values.any() else values
    low, high = np.percentile(shown, [0.5, 99.5])
    return float(low), float(high)


@lru_cache(maxsize=4096)
def _slice_areas(label: Path, changed: int) -> list[dict[int, int]]:
    """Count the pixels of each label in each axial slice, from the feet."""
    # A float array saved as integers is scaled: 1 comes back as 1.00000006, or up to half a step beside.
    tolerance = max(1e-3, min(abs(float(_open(label).dataobj.slope)) / 2, 0.1))
    counts = []
    for number in range(_shape(label)[_axes(label)[2, 0]]):
        plane = _axial(label, number)
        values, areas = np.unique(plane, return_counts=True)
        whole = np.round(values)
        strange = values[~((np.abs(values - whole) <= tolerance) & (whole >= 0))]
        if len(strange):
            raise DataError(f"{label} holds values such as {strange[0]:g}; labels are whole numbers from 0.")
        found: dict[int, int] = defaultdict(int)
        for value, area in zip(whole.astype(np.int64).tolist(), areas.tolist(), strict=True):
            if value:
                found[value] += area
        counts.append(dict(found))
    return counts


def _stem(name: str) -> str:
    return re.sub(r"(_0000)?\.nii(\.gz)?$", "", name)


def _key(path: Path) -> str:
    """Return what an image and its label share: "0001" of img0001.nii.gz and label0001.nii.gz too."""
    return re.sub(r"^(img|image|label|mask|seg)[_-]?(?=\d)", "", _stem(path.name), flags=re.IGNORECASE)


def find_pairs(root: Path) -> tuple[list[tuple[Path, Path]], list[Skipped]]:
    """Return (image, label) files, and the images without a label.

    A label has its image's name without the _0000 that nnU-Net adds to images. Where both have one name, as in the
    Medical Segmentation Decathlon, their folders tell them apart: imagesTr/ and labelsTr/.
    """
    files = [path for path in visible_files(root, "*.nii*") if path.name.endswith(_SUFFIXES)]
    labels: dict[str, list[Path]] = defaultdict(list)
    images: list[Path] = []
    for path in files:
        if _is_image(path, root):
            images.append(path)
        else:
            labels[_key(path)].append(path)
    pairs: list[tuple[Path, Path]] = []
    skipped: list[Skipped] = []
    for image in images:
        # Of several labels of that name, the one in the same part of the data set.
        near = {label: len(os.path.commonpath([image, label])) for label in labels[_key(image)]}
        nearest = [label for label, shared in near.items() if shared == max(near.values())]
        if len(nearest) == 1:
            pairs.append((image, nearest[0]))
        elif nearest:
            skipped.append(Skipped(str(image), f"several label volumes, {nearest[0]} and {nearest[1]}"))
        else:
            skipped.append(Skipped(str(image), "no label volume"))
    return pairs, skipped


def _is_image(path: Path, root: Path) -> bool:
    """Tell images from labels by the innermost folder that says which it holds, otherwise by the file's name."""
    for folder in reversed(path.relative_to(root).parts[:-1]):
        if _LABEL_FOLDER.match(folder):
            return False
        if _IMAGE_FOLDER.match(folder):
            return True
    return _IMAGE_NAME.search(path.name) is not None


def recognise(root: Path) -> bool:
    """Tell whether there are NIfTI files in this folder or in those directly below it."""
    if not root.is_dir():
        return False
    found = (path for pattern in ("*.nii*", "*/*.nii*") for path in root.glob(pattern))
    return any(path.name.endswith(_SUFFIXES) and not is_hidden(path, root) for path in found)


def _class_table(root: Path, pairs: list[tuple[Path, Path]], settings: DataSettings) -> dict[int, str]:
    classes, _ = parse_class_names(settings.class_names)
    if classes is not None:
        return classes
    described = root / "dataset.json"
    if described.is_file():
        try:
            labels = parse_json(read_text(described))["labels"]
            # nnU-Net 1 writes {"1": "liver"}, nnU-Net 2 {"liver": 1}.
            table = {int(k): str(v) if str(k).isdigit() else None for k, v in labels.items() if str(k).isdigit()}
            table = table or {int(v): str(k) for k, v in labels.items()}
            return {i: str(name) for i, name in sorted(table.items()) if i != 0}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{described} has no labels as nnU-Net writes them: {error}.") from error
    return dict(enumerate(ABDOMEN_1K if pairs[0][1].name.startswith("Case_") else FLARE22, start=1))


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return none: CT sets are one pool of slices, divided at random as the paper does."""
    return ()


def open_reader(root: Path, settings: DataSettings, split: str | None) -> NiftiReader:
    """Return the reader of all volumes below a folder."""
    pairs, skipped = find_pairs(root)
    if not pairs:
        found = f" Left out: {skipped[0].where}, {skipped[0].why}." if skipped else ""
        raise DataError(
            f"No pair of volumes was found below {root}. Images are named CASE_0000.nii.gz and labels CASE.nii.gz, in "
            f"any folders: FLARE22's images/ and labels/, AbdomenCT-1K's Mask/, nnU-Net's imagesTr/ and labelsTr/. "
            f"Where both have the same name, their folders must be called images and labels.{found}"
        )
    if settings.intensity_range is not None:
        raise DataError(
            f"intensity_range={settings.intensity_range!r} is for image files; volumes are shown through a window. Set "
            f"window_level (its centre) and window_width."
        )
    window = None
    if settings.window_level is not None or settings.window_width is not None:
        level, width = CT_WINDOW
        window = (
            level if settings.window_level is None else settings.window_level,
            width if settings.window_width is None else settings.window_width,
        )
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
