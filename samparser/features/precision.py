"""How precisely a feature is stored: as it is, rounded to 11 bits, or to 8 bits with a scale for each channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "int8": torch.int8}
_LARGEST = 127  # of int8, with the same range below zero


def channel_axis(shape: tuple[int, ...]) -> int:
    """Return the axis of a map's channels: the one beside height and width, which are equal.

    Example:
        >>> channel_axis((64, 64, 768)), channel_axis((256, 64, 64))
        (2, 0)
    """
    return 0 if len(shape) == 3 and shape[1] == shape[2] != shape[0] else len(shape) - 1


def stored_names(tensors: int, dtype: torch.dtype) -> list[str]:
    """Return the names of what an entry of so many tensors holds, in the order of its checksum."""
    kinds = ("features", "scales") if dtype == torch.int8 else ("features",)
    return [f"{kind}{place}" for place in range(tensors) for kind in kinds]


def stored_bytes(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> int:
    """Return the size of an entry, headers aside."""
    values = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
    return values + (sum(4 * shape[channel_axis(shape)] for shape in shapes) if dtype == torch.int8 else 0)


def to_stored(features: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what is stored of features, on the CPU and by `stored_names`.

    Args:
        features: Finite, on any device. Rounding comes before they travel.
        dtype: torch.float32; torch.float16, where a tensor with values above 65504, which float16 has not, stays in
            float32; or torch.int8: each value is within half a step, which is 1/127 of its channel's largest size.
    """
    stored: list[Tensor] = []
    for tensor in features:
        stored += _quantized(tensor.float()) if dtype == torch.int8 else (_narrowed(tensor.float(), dtype),)
    names = stored_names(len(features), dtype)
    return {name: tensor.cpu().contiguous() for name, tensor in zip(names, stored, strict=True)}


def from_stored(stored: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return features of what `to_stored` gave: float32 where 8 bits were stored, else as they are."""
    whole = []
    for name, tensor in stored.items():
        if name.startswith("features"):
            scales = stored.get(name.replace("features", "scales"))
            whole.append(tensor if scales is None else tensor * scales)
    return tuple(whole)


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    return narrow if bool(narrow.isfinite().all()) else tensor


def _quantized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Round to whole steps of a size of each channel's own; a channel of zeros has the smallest step there is."""
    channel = channel_axis(tuple(tensor.shape))
    others = [axis for axis in range(tensor.ndim) if axis != channel]
    largest = tensor.abs().amax(dim=others, keepdim=True) if others else tensor.abs()
    scales = (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (tensor / scales).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales
