"""Settings of a square image processor as transformers writes them, and what of them is understood."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samparser._untrusted import fits

OWN_TYPE = "SquareImageProcessor"
"""The type written for what no processor of transformers does, so that none reads it and does something else."""

PROCESSOR_CLASSES = {"Sam2ImageProcessor": "Sam2Processor", "Sam3ImageProcessor": "Sam3TrackerProcessor"}
"""By the type of an image processor, the processor of transformers around it that takes boxes and points."""

RESAMPLE_NAMES = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
"""Pillow's numbers, which transformers writes."""

_HINTS: dict[str, Any] = {
    "size": int | dict[str, int],
    "image_mean": list[float],
    "image_std": list[float],
    "do_resize": bool,
    "do_rescale": bool,
    "rescale_factor": float,
    "do_normalize": bool,
    "do_min_max": bool,
    "do_convert_rgb": bool,
    "resample": int,
    "mask_size": int | dict[str, int],
    "image_processor_type": str,
}
# Steps that SAM 2, EdgeTAM and SAM 3 do not have; switched off they are in many files.
_REFUSED = ("do_pad", "do_center_crop")
# What does not change the pixels: how older releases of transformers ran, and what belongs to refused steps.
_WITHOUT_EFFECT = {
    "_valid_processor_keys",
    "crop_size",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "feature_extractor_type",
    "image_seq_length",
    "input_data_format",
    "mask_pad_size",
    "pad_size",
    "processor_class",
    "return_tensors",
}


def base_type(settings: Mapping[str, Any]) -> str | None:
    """Return the type of image processor that settings are for, without the ending of fast ones; None if unsaid."""
    kind = settings.get("image_processor_type")
    return kind.removesuffix("Fast") if isinstance(kind, str) else None


def is_square(source: str | Path) -> bool:
    """Return whether the image processor saved in a folder, or on the hub, squashes images to a square.

    Raises:
        OSError: There is none, or it cannot be read.
    """
    return base_type(read_settings(source)) in (*PROCESSOR_CLASSES, OWN_TYPE)


def read_settings(source: str | Path) -> dict[str, Any]:
    """Read the settings of an image processor from processor_config.json or preprocessor_config.json.

    The first counts where it holds them (`image_processor`), as in transformers.

    Args:
        source: A folder, or a name on the hub.

    Raises:
        OSError: There are none, they are no JSON, or the hub cannot be reached.
        ValueError: processor_config.json scales boxes to another size than images.
    """
    from transformers import ImageProcessingMixin, ProcessorMixin

    name = str(source)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
        around, _ = ProcessorMixin.get_processor_dict(name)
    except json.JSONDecodeError as error:
        raise OSError(f"The settings of the image processor in {name} are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise OSError(f"The settings of the image processor in {name} are a {type(settings).__name__}, not a table.")
    target, size = around.get("target_size"), settings.get("size")
    if target is not None and isinstance(size, dict) and size.get("height", target) != target:
        raise ValueError(
            f"processor_config.json in {name} scales boxes and points to target_size {target}, but images to {size}. "
            "Both have to be the model's input size."
        )
    return settings


def understood(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `SquareImageProcessor` that saved settings name; what says nothing is left out.

    Raises:
        ValueError: A setting is of the wrong type, or asks for a step that is not there.
    """
    kind = base_type(settings)
    if kind is not None and kind not in (*PROCESSOR_CLASSES, OWN_TYPE):
        raise ValueError(
            f"These are the settings of a {kind}, which is no square image processor "
            f"({', '.join(PROCESSOR_CLASSES)}). SAM and SAM-HQ pad images: load theirs with SamProcessor."
        )
    if on := [name for name in _REFUSED if settings.get(name)]:
        raise ValueError(f"The image processor asks for {' and '.join(on)}; a square image is only resized. Set false.")
    arguments = {}
    for name, hint in _HINTS.items():
        value = settings.get(name)
        if value is None:
            continue
        if not fits(value, hint):
            raise ValueError(f"The image processor's {name} has the wrong type: {value!r}.")
        arguments[name] = value
    if kind is not None:
        arguments["image_processor_type"] = kind
    unknown = [
        name
        for name, value in settings.items()
        if value is not None and name not in {*_HINTS, *_WITHOUT_EFFECT, *_REFUSED}
    ]
    if unknown:
        warnings.warn(
            f"The image processor's settings {', '.join(map(repr, sorted(unknown)))} are not known here and have no "
            "effect. If they change the pixels, the masks will differ from those of transformers.",
            stacklevel=2,
        )
    return arguments
