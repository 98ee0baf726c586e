"""Pascal VOC's segmentation set, palette PNGs for classes and objects, and what tools export in its form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samparser._words import shortened

from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError, Instance, Sample, Skipped, warn
from ..settings import DataSettings
from .images import IMAGE_SUFFIXES, read_image
from .labels import parse_class_names, read_values, separate
from .paths import read_text, visible_files
from .reader import Layout

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
_VOID_COLOUR = (224, 224, 192)
_SPLITS = ("train", "val", "test")
# Names of the folders of masks: VOC's and CVAT's, then those of older labelme2voc.
_CLASS_FOLDERS = ("SegmentationClass", "SegmentationClassPNG")
_OBJECT_FOLDERS = ("SegmentationObject", "SegmentationObjectPNG")


@dataclass(frozen=True)
class ClassTable:
    """What the values of SegmentationClass mean.

    Attributes:
        names: Class id -> name.
        colours: (red, green, blue) -> class id, where a labelmap.txt says so; empty for VOC itself.
        source: Where the names are from, for messages.
    """

    names: dict[int, str]
    colours: dict[tuple[int, int, int], int]
    source: str


class VocReader:
    """Samples of one list of VOC's ImageSets/Segmentation.

    An instance is an id of SegmentationObject; its class is the most frequent one of SegmentationClass below it. 255,
    the band around objects, is void. Without a SegmentationObject each connected component of a class is an instance.

    Args:
        folder: VOCdevkit/VOC2012.
        split: "train", "val" or "test"; None takes the images of all lists, or all that have a mask without any list.
        root: Names of samples are paths relative to this folder.
        table: The classes.
        intensity: How images of more than 8 bits are shown.
    """

    def __init__(
        self,
        folder: Path,
        split: str | None,
        root: Path,
        table: ClassTable,
        intensity: Intensity = EACH_BY_ITSELF,
    ) -> None:
        self._table, self._intensity = table, intensity
        self.classes = table.names
        self.skipped: list[Skipped] = []
        layers = [name for names in (_CLASS_FOLDERS, _OBJECT_FOLDERS) if (name := _existing(folder, names))]
        there = {name: _by_stem(folder / name) for name in ("JPEGImages", *layers)}
        listed = _listed(folder, split)
        if listed is None:
            listed = sorted(there[layers[0]])
        self._files: list[list[Path]] = []
        for stem in dict.fromkeys(listed):
            missing = [name for name, files in there.items() if stem not in files]
            if missing:
                self.skipped.append(Skipped(stem, f"no file in {' and '.join(missing)}"))
            else:
                self._files.append([files[stem] for files in there.values()])
        if not self._files:
            raise DataError(
                f"None of the {len(listed)} images of {split or 'all lists'} has files in {', '.join(there)} of "
                f"{folder}."
            )
        if len(layers) == 1:
            warn(
                f"{folder} has class masks and no SegmentationObject: each connected region of a class is taken for an "
                f"object, so objects that touch are one."
            )
        self.names: list[str] = [files[0].relative_to(root).as_posix() for files in self._files]

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; an object without any class below it is left out."""
        name, (image_path, class_path, *object_path) = self.names[index], self._files[index]
        image = read_image(image_path, self._intensity)
        classes = self._classes(class_path)
        objects = self._objects(object_path[0]) if object_path else classes
        for path, values in ((class_path, classes), *((path, objects) for path in object_path)):
            if values.shape != image.shape[:2]:
                raise DataError(
                    f"{path} has {values.shape[1]} x {values.shape[0]} px, but its image has {image.shape[1]} x "
                    f"{image.shape[0]}."
                )
        void = objects == VOID
        instances, skipped = [], []
        for instance in separate(np.where(void, 0, objects), by_component=not object_path):
            x0, y0, x1, y1 = instance.box
            below = np.bincount(classes[y0:y1, x0:x1][instance.mask], minlength=VOID + 1)
            below[[0, VOID]] = 0
            class_id = int(below.argmax())
            if below[class_id] == 0:
                skipped.append(Skipped(f"{name}: object {instance.id}", "object without a class"))
            elif class_id not in self.classes:
                raise DataError(
                    f"{name}: {class_path.parent.name} has the value {class_id}; {self._table.source} 1 to "
                    f"{max(self.classes)}. Name it in labelmap.txt or in class_names."
                )
            else:
                instances.append(Instance(instance.box, instance.mask, class_id, instance.id))
        return Sample(name, image, tuple(instances), void if void.any() else None), skipped

    def _classes(self, path: Path) -> np.ndarray:
        """Return the class ids of a mask file: its indices, or by its colours where the table has them."""
        colours = self._table.colours
        values = read_values(path, by_colour=bool(colours))
        if not colours:
            return _indices(values, path)
        codes = _codes(values)
        known = {_code(colour): class_id for colour, class_id in colours.items()}
        known |= {0: 0, _code(_VOID_COLOUR): VOID}
        strange = [code for code in np.unique(codes).tolist() if code not in known]
        if not strange:
            found, places = np.unique(codes, return_inverse=True)
            return np.array([known[code] for code in found.tolist()])[places.reshape(codes.shape)]
        indices = read_values(path)
        if indices.ndim == 2 and np.isin(indices, [0, *self.classes, VOID]).all():
            return indices  # a palette of its own: the indices count
        raise DataError(
            f"{path} has colours that labelmap.txt does not name: {shortened(f'#{code:06x}' for code in strange)}."
        )

    def _objects(self, path: Path) -> np.ndarray:
        """Return the ids of a mask file; colours are ids where the classes are colours."""
        values = read_values(path)
        if values.ndim == 2 or not self._table.colours:
            return _indices(values, path)
        codes = _codes(values)
        _, ids = np.unique(np.append(codes, 0), return_inverse=True)  # with 0, so that the background is the first
        ids = ids[:-1].reshape(codes.shape)
        ids = np.where(ids >= VOID, ids + 1, ids)
        return np.where(codes == _code(_VOID_COLOUR), VOID, ids)


def _indices(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 3:
        raise DataError(
            f"{path} is a colour picture. VOC's are palette PNGs, whose indices are ids; use the originals, or say "
            f"what the colours mean in a labelmap.txt (label:red,green,blue::)."
        )
    return values


def _code(colour: tuple[int, int, int]) -> int:
    return (colour[0] << 16) + (colour[1] << 8) + colour[2]


def _codes(values: np.ndarray) -> np.ndarray:
    """Return each pixel's colour as one number; a grey picture counts as a colour one."""
    colours = values if values.ndim == 3 else values[:, :, None].repeat(3, axis=2)
    return np.asarray(colours.astype(np.int64) @ np.array([65536, 256, 1]))


def class_table(folder: Path, settings: DataSettings) -> ClassTable:
    """Return the classes of the class_names setting, CVAT's labelmap.txt, labelme's class_names.txt, or VOC's."""
    names, colours = parse_class_names(settings.class_names)
    if names is not None:
        return ClassTable(names, colours or {}, "class_names names")
    places = [folder, folder.parent, folder.parent.parent]
    for path in (place / "labelmap.txt" for place in places):
        if path.is_file():
            return _read_labelmap(path)
    for path in (place / "class_names.txt" for place in places):
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            first = 1 if "__ignore__" in lines else 0
            return ClassTable({i: line for i, line in enumerate(lines[first:]) if i}, {}, f"{path.name} names")
    return ClassTable(dict(enumerate(VOC_CLASSES, start=1)), {}, "VOC's classes are")


def _read_labelmap(path: Path) -> ClassTable:
    """Return the classes of CVAT's file: lines of name:red,green,blue:parts:actions, in the order of their ids."""
    names: dict[int, str] = {}
    colours: dict[tuple[int, int, int], int] = {}
    for line in read_text(path).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, colour, *_ = [*line.split(":"), ""]
        background = name.lower() == "background"
        class_id = 0 if background else len(names) + 1
        if not background:
            names[class_id] = name
        try:
            if colour:
                red, green, blue = (int(part) for part in colour.split(","))
                colours[red, green, blue] = class_id
        except ValueError:
            raise DataError(f"{path} has the line {line!r}; expected label:red,green,blue:parts:actions.") from None
    if not names:
        raise DataError(f"{path} names no class besides the background.")
    return ClassTable(names, colours, f"{path.name} names")


def _existing(folder: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (folder / name).is_dir()), None)


def _by_stem(folder: Path) -> dict[str, Path]:
    files = visible_files(folder) if folder.is_dir() else ()
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in files if p.suffix.lower() in IMAGE_SUFFIXES}


def _listed(folder: Path, split: str | None) -> list[str] | None:
    """Return the names in the list of a split, or of all lists for None; None where there is no list."""
    lists = folder / "ImageSets" / "Segmentation"
    paths = [lists / f"{split}.txt"] if split else sorted(lists.glob("[!.]*.txt"))
    lines = [line.strip() for path in paths for line in read_text(path).splitlines()]
    return [line for line in lines if line] if paths else None


def find_folder(root: Path) -> Path | None:
    """Return the folder with JPEGImages below a root that may be it, VOCdevkit, or what holds VOCdevkit."""
    candidates = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    candidates += sorted(root.glob("VOC20*")) + sorted(root.glob("VOCdevkit/VOC20*"))
    for folder in candidates:
        if (folder / "JPEGImages").is_dir() and _existing(folder, _CLASS_FOLDERS):
            return folder
    return None


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits that have a list; none where the images are one pool, as CVAT's default.txt and labelme's."""
    lists = _folder(root) / "ImageSets" / "Segmentation"
    return tuple(split for split in _SPLITS if (lists / f"{split}.txt").is_file())


def open_reader(root: Path, settings: DataSettings, split: str | None) -> VocReader:
    """Return the reader of one split, or of the pool for None."""
    folder = _folder(root)
    return VocReader(folder, split, root, class_table(folder, settings), settings.intensity)


def _folder(root: Path) -> Path:
    folder = find_folder(root)
    if folder is None:
        raise DataError(f"{root} holds no VOCdevkit/VOC2012 with JPEGImages/ and SegmentationClass/.")
    return folder


LAYOUT = Layout(
    "VOC2012, CVAT's segmentation masks, labelme2voc: JPEGImages/, SegmentationClass/ and SegmentationObject/, lists "
    "in ImageSets/Segmentation/, own classes in labelmap.txt or class_names.txt",
    lambda path: find_folder(path) is not None,
    splits,
    open_reader,
)
