"""What a cached feature depends on, as hashes: everything upstream of where it is taken, and the image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from samparser._hashing import sha256_of

# Part of every fingerprint; raised when entries of an older release must not be read.
FORMAT = 3

# Settings of a processor and of a configuration that do not touch the features.
_NOT_UPSTREAM = {"mask_size", "mask_pad_size", "processor_class", "image_processor_type"}
_NOT_COMPUTED_WITH = {"transformers_version", "architectures", "_name_or_path", "initializer_range", "dtype"}


def image_key(image: np.ndarray) -> str:
    """Hash an image's shape and pixels, so that a changed image is another image."""
    return sha256_of(f"{image.shape} {image.dtype} ", image)


def upstream_fingerprint(
    tensors: Iterable[tuple[str, Tensor]],
    config: Mapping[str, Any],
    images: Any,
    form: str,
    projection: Tensor | None,
    inexact: Mapping[str, str] | None = None,
) -> str:
    """Hash all that decides a feature, except the image.

    Args:
        tensors: Name and value of every weight and buffer upstream; their order does not matter.
        config: The image encoder's configuration.
        images: The image processor; its class counts too, because backends resize with different rounding.
        form: What is taken: see `FeatureCache`.
        projection: The matrix (rank, channels) that features are multiplied with, or None.
        inexact: What is computed otherwise than by the model in its own precision, one image at a time.

    Returns:
        64 hexadecimal digits.
    """
    settings = {
        "format": FORMAT,
        "form": form,
        "encoder": {name: value for name, value in config.items() if name not in _NOT_COMPUTED_WITH},
        "processor": type(images).__name__,
        "preprocessing": {name: value for name, value in images.to_dict().items() if name not in _NOT_UPSTREAM},
        **(inexact or {}),
    }
    parts: list[str | Tensor] = [json.dumps(settings, sort_keys=True, default=str)]
    named = [*tensors, *([] if projection is None else [("projection", projection)])]
    for name, tensor in sorted(named, key=lambda item: item[0]):
        parts += [f"{name} {tuple(tensor.shape)} {tensor.dtype} ", tensor]
    return sha256_of(*parts)


def named_tensors(parts: Mapping[str, nn.Module | nn.Parameter]) -> dict[str, Tensor]:
    """Return the weights and buffers that `state_dict` has of parts of a model, by full name.

    Args:
        parts: Modules and parameters by full name, such as `Family.upstream` gives.
    """
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{inner}": tensor for inner, tensor in part.state_dict(keep_vars=True).items()}
        else:
            tensors[name] = part
    return tensors
