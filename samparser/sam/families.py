"""The SAM families of transformers: where each has its neck, and how many singular values that holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .wrapped import plain_model


@dataclass(frozen=True)
class Family:
    """One architecture of the SAM line, as transformers names it.

    Attributes:
        model_type: `config.model_type` of its checkpoints.
        model_classes: Names of the transformers classes that hold the encoder.
        neck: Regular expression that a neck convolution's full name must match as a whole.
        coefficients: Trained numbers of the neck per published size: one per singular value, min(out, in * kh * kw)
            of each convolution. For reading and testing; `count_coefficients` counts a model at hand, and pruned
            ones such as SlimSAM have fewer.
    """

    model_type: str
    model_classes: tuple[str, ...]
    neck: str
    coefficients: Mapping[str, int] = field(default_factory=dict)


_SAM2_SIZES = {"tiny": 800, "small": 800, "base-plus": 848, "large": 912}
_NECK_1 = r"vision_encoder\.neck\.conv[12]"
_NECK_2 = r"vision_encoder\.neck\.convs\.\d+"
_NECK_3 = r"vision_encoder\.neck\.fpn_layers\.\d+\.proj[12]"

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("sam", ("SamModel",), _NECK_1, {"base": 512, "large": 512, "huge": 512}),
        Family("sam_hq", ("SamHQModel",), _NECK_1, {"base": 512, "large": 512, "huge": 512}),
        Family("sam2", ("Sam2Model",), _NECK_2, _SAM2_SIZES),
        Family("sam2_video", ("Sam2VideoModel",), _NECK_2, _SAM2_SIZES),
        Family("edgetam", ("EdgeTamModel",), _NECK_2),
        Family("edgetam_video", ("EdgeTamVideoModel",), _NECK_2, {"default": 800}),
        Family("sam3", ("Sam3Model",), _NECK_3, {"default": 2048}),
        Family("sam3_tracker", ("Sam3TrackerModel",), _NECK_3, {"default": 2048}),
        Family("sam3_tracker_video", ("Sam3TrackerVideoModel",), _NECK_3, {"default": 2048}),
    )
}


def neck_targets(model: nn.Module) -> list[str]:
    """Return the full names of the convolutions of the image encoder's neck, for `target_modules`.

    The neck is the few convolutions between the encoder's transformer and the decoder: what SAM-PARSER tunes. Names
    are those of the plain model, also when `model` is a PeftModel or already carries adapters.

    Args:
        model: A model of one of `FAMILIES`, or a PeftModel around it.

    Raises:
        ValueError: The model is of no known family, or has no such convolutions.

    Example:
        >>> import torch
        >>> from transformers import SamConfig, SamModel
        >>> with torch.device("meta"):
        ...     model = SamModel(SamConfig())
        >>> neck_targets(model)
        ['vision_encoder.neck.conv1', 'vision_encoder.neck.conv2']
        >>> count_coefficients(model)
        512
    """
    return list(_neck_modules(model))


def count_coefficients(model: nn.Module) -> int:
    """Count the singular values in the neck of a model: what tuning its coefficients trains."""
    modules = _neck_modules(model).values()
    return sum(min(module.weight.shape[0], module.weight[0].numel()) for module in modules)


def _neck_modules(model: nn.Module) -> dict[str, nn.Conv2d]:
    model = plain_model(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise ValueError(
            f"{type(model).__name__} (model type {model_type!r}) has no known neck; known are {', '.join(FAMILIES)}. "
            "Name the modules to tune in target_modules yourself."
        )
    modules = {
        re.sub(r"\.base_layer$", "", name): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and re.fullmatch(family.neck + r"(\.base_layer)?", name)
    }
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no convolution whose name matches {family.neck!r}. Its neck was replaced or "
            "renamed: name the modules to tune in target_modules yourself."
        )
    return modules
