"""Mask files: what their values mean, and the instances in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from samparser._words import shortened

from ..sample import DataError, Instance
from .images import open_pixels

_ALL_ONES = frozenset({1, 255, 65535})
_BLACK = (0, 0, 0)
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def read_values(path: Path, by_colour: bool = False) -> np.ndarray:
    """Return the values of a mask file: int64 (H, W), palette images as indices; colours as uint8 (H, W, 3).

    A colour image whose three channels are equal everywhere counts as grey; alpha is dropped, unless the colour is the
    same everywhere and the mask is in the alpha. A palette image is read
    by its colours where black is another index than 0: an editor has sorted them as it liked.

    Args:
        path: The file.
        by_colour: Read every palette image by its colours.
    """
    return _values(open_pixels(path), path, by_colour)


def _values(picture: Image.Image | np.ndarray, path: Path | str, by_colour: bool) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        channels = picture[:, :, : 3 if picture.shape[2] >= 3 else 1]
        if (channels != channels[:, :, :1]).any():
            raise DataError(f"{path} has colours of 16 bits a channel; masks need grey values, a palette or 8 bits.")
        return channels[:, :, 0].astype(np.int64)
    if picture.mode in ("LA", "RGBA") and _is_drawn_in_alpha(picture):
        picture = picture.getchannel("A")
    if picture.mode in ("LA", "PA"):
        picture = picture.getchannel(0)
    if picture.mode == "P" and (by_colour or _black_is_not_first(picture)):
        picture = picture.convert("RGB")
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min(initial=0) < 0:
            raise DataError(
                f"{path} holds negative values, {values.min()} for instance; ids start at 0, the background."
            )
        return values
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.array_equal(values, np.round(values)):
            raise DataError(
                f"{path} holds fractions such as {values[values != np.round(values)][0]:g}; masks need ids."
            )
        return values.astype(np.int64)
    colours = np.asarray(picture.convert("RGB"))
    if (colours == colours[:, :, :1]).all():
        return colours[:, :, 0].astype(np.int64)
    return colours


def _is_drawn_in_alpha(picture: Image.Image) -> bool:
    """Tell whether one colour is everywhere and only its opacity varies, as in cut-outs."""
    *colours, alpha = (low != high for low, high in picture.getextrema())
    return bool(alpha and not any(colours))


def _palette(picture: Image.Image) -> dict[int, tuple[int, ...]]:
    """Return index -> (red, green, blue) of the indices that a palette image uses."""
    flat = picture.getpalette("RGB") or []
    used = np.unique(np.asarray(picture)).tolist()
    return {index: tuple(flat[3 * index : 3 * index + 3]) for index in used if 3 * index < len(flat)}


def _black_is_not_first(picture: Image.Image) -> bool:
    colours = _palette(picture)
    return colours.get(0, _BLACK) != _BLACK and _BLACK in colours.values()


def _refuse_light_background(picture: Image.Image | np.ndarray, path: Path | str) -> None:
    """Raise DataError for a palette image without black, where index 0 may be the background or the object."""
    if isinstance(picture, np.ndarray) or picture.mode != "P":
        return
    colours = _palette(picture)
    if len(colours) > 1 and 0 in colours and _BLACK not in colours.values():
        first, second, *_ = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours.values())
        raise DataError(
            f"{path} has a palette without black, index 0 being {first}: it is not known which colour is the "
            f"background. If index 0 is, name the others: class_names {' '.join(f'{i}=NAME' for i in colours if i)}. "
            f"If not, name the colours: class_names '{first}=NAME' '{second}=background'."
        )


@dataclass(frozen=True)
class LabelRules:
    """What the values of mask files mean.

    Attributes:
        instances: "components": values are classes and each connected component (8 neighbours) is an instance;
            "class": each class is one instance; "ids": each value is an instance.
        classes: Class id -> name; None takes masks of 0 and 1, 255 or 65535 as one class, and no others.
        colours: (red, green, blue) -> class id, for masks stored as colours.
        void: Value that means unknown.
        threshold: Values from here upwards are foreground.
    """

    instances: Literal["components", "class", "ids"] = "components"
    classes: dict[int, str] | None = None
    colours: dict[tuple[int, int, int], int] | None = None
    void: int | None = None
    threshold: int | None = None

    def table(self) -> dict[int, str]:
        """Return class id -> name."""
        return {1: "object"} if self.classes is None else dict(self.classes)

    def split(self, path: Path) -> tuple[list[Instance], np.ndarray | None, tuple[int, int]]:
        """Return the instances of a mask file, where it is void, and its (height, width)."""
        return self.split_picture(open_pixels(path), path)

    def split_picture(
        self, picture: Image.Image | np.ndarray, path: Path | str
    ) -> tuple[list[Instance], np.ndarray | None, tuple[int, int]]:
        """Return the instances of a decoded mask, where it is void, and its (height, width); `path` is for messages."""
        values = _values(picture, path, by_colour=self.threshold is not None or self.colours is not None)
        void = None
        if self.threshold is not None:
            if values.ndim == 3:
                values = values.max(axis=2)
            labels = (values >= self.threshold).astype(np.int64)
        elif values.ndim == 3:
            labels = self._from_colours(values, path)
        else:
            if self.void is not None:
                void = values == self.void
                values = np.where(void, 0, values)
            labels = values if self.instances == "ids" else self._classes_of(values, path, picture)
        instances = separate(labels, by_component=self.instances == "components", one_class=self.instances == "ids")
        return instances, void if void is not None and void.any() else None, (labels.shape[0], labels.shape[1])

    def _classes_of(self, values: np.ndarray, path: Path | str, picture: Image.Image | np.ndarray) -> np.ndarray:
        found = np.unique(values)
        found = found[found != 0].tolist()
        if self.classes is None:
            _refuse_light_background(picture, path)
            if len(found) > 1 or (found and found[0] not in _ALL_ONES):
                raise DataError(_ambiguous(path, found))
            return (values != 0).astype(np.int64)
        strange = [value for value in found if value not in self.classes]
        if strange:
            raise DataError(
                f"{path} has the values {shortened(strange, 8)}, which name no class: "
                f"{', '.join(f'{value}={name}' for value, name in self.classes.items())}. Add them to class_names, or "
                f"set void_value if they mean unknown."
            )
        return values

    def _from_colours(self, values: np.ndarray, path: Path | str) -> np.ndarray:
        codes = values.astype(np.int64) @ np.array([65536, 256, 1])
        if self.instances == "ids":
            return codes
        labels = np.zeros(codes.shape, dtype=np.int64)
        known = {0: 0} | {(r << 16) + (g << 8) + b: class_id for (r, g, b), class_id in (self.colours or {}).items()}
        strange = [code for code in np.unique(codes).tolist() if code not in known]
        if strange:
            seen = shortened(f"#{code:06x}" for code in strange)
            raise DataError(
                f"{path} is a colour picture with colours that name no class: {seen}. Say what they mean, for instance "
                f"class_names '#{strange[0]:06x}=building'; or, if each colour is one instance, set instances to ids. "
                f"More than a few dozen colours mean that the mask was resized or saved as JPEG: export it again."
            )
        for code, class_id in known.items():
            labels[codes == code] = class_id
        return labels


def parse_class_names(entries: Sequence[str] | None) -> tuple[dict[int, str] | None, dict | None]:
    """Return the class_names setting as (classes, colours): "3=road" names a value, "#ff0000=road" a colour.

    A colour named background means 0.

    Raises:
        ValueError: An entry has another form, or names the background.
    """
    if not entries:
        return None, None
    classes: dict[int, str] = {}
    colours: dict[tuple[int, int, int], int] = {}
    for number, entry in enumerate(entries, start=1):
        match = re.fullmatch(r"(?:(\d+)|#([0-9a-fA-F]{6}))=(.+)", entry)
        if not match:
            raise ValueError(f"class_names needs entries like 3=road or '#ff0000=road', got {entry!r}.")
        if match[1] is not None:
            if int(match[1]) == 0:
                raise ValueError(f"0 is the background and needs no name; leave {entry!r} out of class_names.")
            classes[int(match[1])] = match[3]
        else:
            code = int(match[2], 16)
            same = [class_id for class_id, name in classes.items() if name == match[3]]
            class_id = same[0] if same else number
            if match[3].lower() == "background":
                class_id = 0
            else:
                classes[class_id] = match[3]
            colours[code >> 16, code >> 8 & 255, code & 255] = class_id
    if colours and len(colours) < len(entries):
        raise ValueError("class_names names either values or colours, not both.")
    return classes, colours or None


def separate(labels: np.ndarray, by_component: bool, one_class: bool = False) -> list[Instance]:
    """Return the instances in an array of labels (H, W), 0 being the background.

    Args:
        labels: Class ids, or instance ids.
        by_component: Each connected component of each label is an instance, not each label.
        one_class: Labels are instance ids: every instance is of class 1.
    """
    values, dense = np.unique(labels, return_inverse=True)
    # find_objects numbers regions from 1 and takes 0 for the background.
    dense = dense.reshape(labels.shape) + (0 if len(values) and values[0] == 0 else 1)
    values = values[values != 0]
    instances = []
    for number, place in enumerate(ndimage.find_objects(dense.astype(np.int32)), start=1):
        value = int(values[number - 1])
        region = dense[place] == number
        left, top = place[1].start, place[0].start
        class_id = 1 if one_class else value
        if not by_component:
            instances.append(Instance.from_mask(region, class_id, str(value), offset=(left, top)))
            continue
        parts, _ = ndimage.label(region, _EIGHT_NEIGHBOURS)
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            offset = (left + inner[1].start, top + inner[0].start)
            instances.append(Instance.from_mask(parts[inner] == part, class_id, f"{value}.{part}", offset=offset))
    return [instance for instance in instances if instance is not None]


def _ambiguous(path: Path | str, found: list[int]) -> str:
    start = f"{path} has the values {shortened(found, 8)} besides 0"
    if len(found) > 3 and (Path(path).suffix.lower() in (".jpg", ".jpeg") or (max(found) == 255 and len(found) > 40)):
        return (
            f"{start}: it looks like a mask of 0 and 255 that lost its sharp edges, as JPEG and resizing do. Set "
            f"mask_threshold to 128 to take values from there upwards as foreground, or export the masks as PNG."
        )
    return (
        f"{start}, and it is not known what they mean. If they are classes, name them: class_names "
        f"{' '.join(f'{value}=NAME' for value in found[:4])}. If each value is one object, set instances to ids. If "
        f"255 means unknown, set void_value to 255."
    )
