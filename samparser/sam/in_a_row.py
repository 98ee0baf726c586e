"""Prompts of several images one after another, instead of rows that are filled up to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def concatenated(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the first so many of each row, one row after another.

    Args:
        rows: (B, N, ...).
        counts: B numbers, from 0 to N.

    Returns:
        (P, ...), P the sum of the counts.

    Example:
        >>> concatenated(torch.tensor([[1, 2, 3], [4, 0, 0]]), [3, 1])
        tensor([1, 2, 3, 4])
    """
    return torch.cat([row[:count] for row, count in zip(rows.unbind(), counts, strict=True)])


def repeated(images: Any, counts: Sequence[int]) -> Any:
    """Return each image of a batch as often as it has prompts.

    The gradient of an image is the sum of its copies', added up in one order on every device.

    Args:
        images: (B, ...), or a list of such tensors.
        counts: B numbers.

    Returns:
        (P, ...), P the sum of the counts, or a list of such tensors.

    Example:
        >>> repeated(torch.tensor([[1, 2], [3, 4]]), [1, 2])
        tensor([[1, 2],
                [3, 4],
                [3, 4]])
    """
    if not isinstance(images, Tensor):
        return [repeated(tensor, counts) for tensor in images]
    parts = zip(images.split(1), counts, strict=True)
    return torch.cat([image.expand(count, *image.shape[1:]) for image, count in parts])
