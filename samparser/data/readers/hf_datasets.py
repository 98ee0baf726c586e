"""Data sets of Hugging Face's `datasets`: a column of images beside one of masks, or of objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from samparser._extras import require

from ..sample import DataError, Sample, Skipped
from ..settings import DataSettings
from .drawn import DrawnReader, Entry, Shape, numbered
from .images import Embedded, as_rgb, open_pixels
from .labels import LabelRules, parse_class_names
from .reader import Layout
from .segmentations import BadMask, annotation_mask
from .shapes import numbers, placed

_IMAGES = ("image", "img", "pixel_values", "picture")
_MASKS = ("mask", "masks", "label", "labels", "annotation", "segmentation_mask", "semantic_mask", "gt", "labels_image")
_OBJECTS = ("objects", "annotations", "instances")
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "name")
_POLYGONS = ("segmentation", "segmentations", "polygon", "polygons")
_SPLITS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class Rows:
    """The rows of a `datasets.Dataset`, or of a stream that is read once, with pictures as they are stored.

    Args:
        dataset: A `Dataset`, or an `IterableDataset`, whose rows are kept in memory, pictures encoded as they came.
        prefix: Of the names of the samples.
        root: The folder that the set was loaded from; None for one that the caller made, which may name files.
        most: How many rows to take of a stream; None takes all.

    Raises:
        DataError: A stream does not say what its columns are.
        ImportError: `datasets` is not installed.
    """

    def __init__(self, dataset: Any, prefix: str, root: Path | None, most: int | None = None) -> None:
        datasets = require("datasets", "Reading a data set of Hugging Face's datasets", "datasets")
        if dataset.features is None:
            raise DataError(
                "This stream does not say what its columns are. Make it with features=, or give "
                "dataset.cast(Features({'image': Image(), 'mask': Image()}))."
            )
        self.features, self.root = dict(dataset.features), root
        for name, feature in self.features.items():
            plain = _undecoded(feature, datasets.Image)
            if plain != feature:
                dataset = dataset.cast_column(name, plain)
        streamed = isinstance(dataset, datasets.IterableDataset)
        self._rows = list(dataset.take(most) if most else dataset) if streamed else dataset.with_format(None)
        self.names = [f"{prefix}{number:06d}" for number in range(len(self._rows))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._rows[index]
        return row

    def column(self, name: str) -> Iterator[Any]:
        """Yield the values of a column, without the others."""
        rows = self._rows if isinstance(self._rows, list) else self._rows.select_columns([name])
        return (row[name] for row in rows)

    def picture(self, value: Any, where: str) -> Any:
        """Return the decoded picture of a value, as `open_pixels` returns it.

        Raises:
            DataError: There is none, or it is a file that a set of others names.
        """
        if isinstance(value, dict) and value.get("bytes"):
            return open_pixels(Embedded(value["bytes"], where))
        path = value.get("path") if isinstance(value, dict) else None
        if path and self.root is None:
            return open_pixels(Path(path))
        raise DataError(f"{where} holds no picture" + (f", only the name {path!r} of a file." if path else "."))


def _undecoded(feature: Any, image: type) -> Any:
    """Return a feature whose images are left encoded."""
    if isinstance(feature, image):
        return replace(feature, decode=False)  # type: ignore[type-var]
    if isinstance(feature, dict):
        return {name: _undecoded(inner, image) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(inner, image) for inner in feature]
    inner = getattr(feature, "feature", None)
    return feature if inner is None else replace(feature, feature=_undecoded(inner, image))


class MaskColumnReader:
    """Samples of rows with an image and a mask, whose values are what the rules say."""

    def __init__(self, rows: Rows, image: str, mask: str, settings: DataSettings) -> None:
        classes, colours = parse_class_names(settings.class_names)
        self._rules = LabelRules(settings.instances, classes, colours, settings.void_value, settings.mask_threshold)
        self.classes, self.names = self._rules.table(), rows.names
        self.skipped: list[Skipped] = []
        self._rows, self._columns, self._intensity = rows, (image, mask), settings.intensity

    def read(self, index: int) -> tuple[Sample, list[Skipped]]:
        """Return sample `index`; DataError when image and mask differ in size or the mask's values mean nothing."""
        row, name = self._rows[index], self.names[index]
        image, mask = (f"{name}, column {column}" for column in self._columns)
        pixels = as_rgb(self._rows.picture(row[self._columns[0]], image), image, self._intensity)
        picture = self._rows.picture(row[self._columns[1]], mask)
        instances, void, size = self._rules.split_picture(picture, mask)
        if size != pixels.shape[:2]:
            raise DataError(
                f"{mask} has {size[1]} x {size[0]} px, but its image has {pixels.shape[1]} x {pixels.shape[0]}."
            )
        return Sample(name, pixels, tuple(instances), void), []


class ObjectColumnReader(DrawnReader):
    """Samples of rows with an image and objects: each with a class, and polygons, run lengths or a mask of its own."""

    def __init__(self, rows: Rows, image: str, objects: str, settings: DataSettings) -> None:
        self._rows, self._image, self._objects = rows, image, objects
        fields = _fields(rows.features[objects])
        self._class = _chosen(fields, _CLASSES, None)
        known = None if self._class is None else getattr(_innermost(fields[self._class]), "names", None)
        self._known: Sequence[str] | None = known
        if known is None:
            labels = {self._label(one) for value in rows.column(objects) for one in _each(value)}
        classes = dict(enumerate(known)) if known else numbered(labels)
        entries = [Entry(name, None, place) for place, name in enumerate(rows.names)]
        super().__init__(entries, classes, [], settings)

    def _label(self, one: dict[str, Any]) -> str:
        value = None if self._class is None else one.get(self._class)
        if self._known is not None and isinstance(value, int) and 0 <= value < len(self._known):
            return self._known[value]
        return "object" if self._class is None else str(value)

    def image(self, entry: Entry) -> np.ndarray:
        """Return the picture of a row: uint8 RGB (H, W, 3)."""
        where = f"{entry.name}, column {self._image}"
        return as_rgb(self._rows.picture(self._rows[entry.source][self._image], where), where, self._intensity)

    def shapes(self, entry: Entry, height: int, width: int) -> Iterator[Shape | Skipped]:
        """Yield the objects of a row."""
        for number, one in enumerate(_each(self._rows[entry.source][self._objects]), start=1):
            yield Shape(f"object {number}", self._label(one), partial(self._draw, one, height, width))

    def _draw(self, one: dict[str, Any], height: int, width: int) -> np.ndarray:
        outline = next((one[key] for key in _POLYGONS if one.get(key)), None)
        if outline is not None:
            return annotation_mask(outline, height, width)
        if one.get("mask") is None:
            raise BadMask("no segmentation, only a box")
        try:
            picture = self._rows.picture(one["mask"], "mask")
        except DataError:
            raise BadMask("mask that does not open") from None
        crop: np.ndarray = np.asarray(picture if isinstance(picture, np.ndarray) else picture.convert("L")) > 0
        if crop.ndim == 3:
            crop = np.logical_or.reduce(crop, axis=2)
        if crop.shape == (height, width):
            return crop
        x, y, w, h = numbers(one.get("bbox") or (), "box") if len(one.get("bbox") or ()) == 4 else (0, 0, 0, 0)
        if max(abs(crop.shape[1] - w), abs(crop.shape[0] - h)) > 1:
            raise BadMask("mask of another size than its image and its box")
        return placed(crop, round(x), round(y), height, width)


def _fields(feature: Any) -> dict[str, Any]:
    """Return the fields of a column of objects, whether it is a list of them or a list for each field."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return inner if isinstance(inner, dict) else {}


def _innermost(feature: Any) -> Any:
    while isinstance(feature, list) or getattr(feature, "feature", None) is not None:
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def _each(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a row, one dictionary each."""
    if isinstance(value, dict):
        many = max((len(column) for column in value.values() if isinstance(column, list)), default=0)
        return [
            {key: column[place] for key, column in value.items() if isinstance(column, list) and place < len(column)}
            for place in range(many)
        ]
    return [one for one in value or () if isinstance(one, dict)]


def _chosen(features: Iterable[str], names: Sequence[str], said: str | None) -> str | None:
    """Return the column that a setting names, or the first of the usual names."""
    if said is not None and said not in features:
        raise DataError(f"There is no column {said!r}; there are {', '.join(features)}.")
    return said or next((name for name in names if name in features), None)


def reader_of(rows: Rows, settings: DataSettings) -> MaskColumnReader | ObjectColumnReader:
    """Return the reader of rows; the settings `images` and `masks` name columns of other names.

    Raises:
        DataError: There is no column of images, or none of masks or objects.
    """
    features = rows.features
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    image = _chosen(features, [name for name in (*_IMAGES, *images) if name in images], settings.images)
    others = [name for name in images if name != image]
    objects = (
        None if settings.masks else _chosen([name for name in features if _fields(features[name])], _OBJECTS, None)
    )
    if image is not None and objects is not None:
        return ObjectColumnReader(rows, image, objects, settings)
    mask = _chosen(features, [name for name in (*_MASKS, *others) if name in others], settings.masks)
    if image is None or mask is None:
        raise DataError(
            f"No column of images beside one of masks, or of objects, was found among {', '.join(features)}. Name them "
            f"with the images and masks settings; objects are a column with lists of category and segmentation or mask."
        )
    return MaskColumnReader(rows, image, mask, settings)


def _load(root: Path) -> dict[str | None, Any]:
    """Return the parts of a saved set by split; by None where it has no division."""
    datasets = require("datasets", "Reading a data set of Hugging Face's datasets", "datasets")
    try:
        loaded = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root} does not open as a set of Hugging Face's datasets: {error}.") from error
    if not isinstance(loaded, dict):
        return {None: loaded}
    found: dict[str | None, Any] = {
        split: loaded[word] for split, words in _SPLITS.items() for word in words if word in loaded
    }
    if not found:
        raise DataError(f"{root} has the parts {', '.join(loaded)}, of which none is train, validation or test.")
    return found


def splits(root: Path, settings: DataSettings) -> tuple[str, ...]:
    """Return the splits of a saved `DatasetDict`; none of a saved `Dataset`."""
    return tuple(split for split in _load(root) if split is not None)


def open_reader(root: Path, settings: DataSettings, split: str | None) -> MaskColumnReader | ObjectColumnReader:
    """Return the reader of one split, or of the pool for None."""
    return reader_of(Rows(_load(root)[split], "" if split is None else f"{split}/", root), settings)


def recognise(root: Path) -> bool:
    """Tell whether `save_to_disk` has written this folder."""
    return (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("state.json", "dataset_info.json")
    )


LAYOUT = Layout(
    "Hugging Face's datasets, as save_to_disk writes them: dataset_dict.json, or state.json and dataset_info.json",
    recognise,
    splits,
    open_reader,
)
