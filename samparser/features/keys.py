"""What a cached feature depends on, as hashes: everything upstream of where it is taken, and the image."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Part of every fingerprint; raised when entries of an older release must not be read.
FORMAT = 1

# Settings of a processor and of a configuration that do not touch the features.
_NOT_UPSTREAM = {"mask_size", "mask_pad_size", "processor_class", "image_processor_type"}
_NOT_COMPUTED_WITH = {"transformers_version", "architectures", "_name_or_path", "initializer_range", "dtype"}


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor, uint8 (n,), without a copy where it is contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def image_key(image: np.ndarray) -> str:
    """SHA-256 of an image's shape and pixels, so that a changed image is another image."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def upstream_fingerprint(
    tensors: Iterable[tuple[str, Tensor]], config: Mapping[str, Any], images: Any, form: str, projection: Tensor | None
) -> str:
    """SHA-256 of all that decides a feature, except the image.

    Args:
        tensors: Name and value of every weight and buffer upstream; their order does not matter.
        config: The image encoder's configuration.
        images: The image processor; its class counts too, because backends resize with different rounding.
        form: What is taken: see `FeatureCache`.
        projection: The matrix (rank, channels) that features are multiplied with, or None.
    """
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT,
        "form": form,
        "encoder": {name: value for name, value in config.items() if name not in _NOT_COMPUTED_WITH},
        "processor": type(images).__name__,
        "preprocessing": {name: value for name, value in images.to_dict().items() if name not in _NOT_UPSTREAM},
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    named = [*tensors, *([] if projection is None else [("projection", projection)])]
    for name, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor_bytes(tensor).data)
    return digest.hexdigest()


def upstream_tensors(encoder: nn.Module, *, with_neck: bool) -> dict[str, Tensor]:
    """Weights and buffers of an image encoder by name, with those of its neck or without."""
    state = encoder.state_dict()
    return {name: tensor for name, tensor in state.items() if with_neck or not name.startswith("neck.")}
