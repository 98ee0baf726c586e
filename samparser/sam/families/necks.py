"""The neck of an image encoder: which convolutions it has, and how many singular values these hold."""

from __future__ import annotations

import re

from torch import nn

from samparser.sam.wrapped import plain_model

from .registry import FAMILIES, TUNER_ONLY, tuner_only


def neck_targets(model: nn.Module) -> list[str]:
    """Return the full names of the convolutions of the image encoder's neck, for `target_modules`.

    The neck is the few convolutions between the encoder's transformer and the decoder: what SAM-PARSER tunes. Names
    are those of the plain model, also when `model` is a PeftModel or already carries adapters.

    Args:
        model: A model of the SAM line in transformers, or a PeftModel around it.

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
    # A model type may be both: that of a family's checkpoints, and of another class for videos.
    known = tuner_only(str(model_type), type(model).__name__) or FAMILIES.get(str(model_type))
    if known is None:
        raise ValueError(
            f"{type(model).__name__} (model type {model_type!r}) has no known neck; known are "
            f"{', '.join(dict.fromkeys([*FAMILIES, *TUNER_ONLY]))}. "
            "Name the modules to tune in target_modules yourself."
        )
    pattern = known.neck_of(model)
    modules = {
        re.sub(r"\.base_layer$", "", name): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and re.fullmatch(f"(?:{pattern})" + r"(\.base_layer)?", name)
    }
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no convolution whose name matches {pattern!r}. Its neck was replaced or "
            "renamed: name the modules to tune in target_modules yourself."
        )
    return modules
