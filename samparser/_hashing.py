"""Content hashes: SHA-256 of tensors, arrays and text; and the count that tells of changes without hashing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def sha256_of(*parts: Tensor | np.ndarray | str | bytes) -> str:
    """Hash the parts one after another; nothing stands between them, so put shapes and names in as text where needed.

    Args:
        parts: Tensors and arrays count by their bytes in row-major order, whatever their layout in memory and their
            device; text counts by its UTF-8 bytes.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: A tensor is on the meta device and has no values.

    Example:
        >>> weight = torch.ones(2, 3)
        >>> sha256_of("float32 (2, 3) ", weight)[:16]
        '2df9fe232df9d10f'
        >>> sha256_of(weight.T) == sha256_of(weight.T.contiguous())
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else _bytes_of(part))
    return digest.hexdigest()


def hash_of_tensors(named: Mapping[str, Tensor]) -> str | None:
    """Hash names, dtypes, shapes and values of tensors, in the order of their names; None where some have no values.

    Example:
        >>> hash_of_tensors({"a": torch.ones(2)}) == hash_of_tensors({"b": torch.ones(2)})
        False
    """
    if any(tensor.is_meta or hasattr(tensor, "full_tensor") for tensor in named.values()):
        return None
    parts = ((f"{name} {tensor.dtype} {tuple(tensor.shape)} ", tensor) for name, tensor in sorted(named.items()))
    return sha256_of(*(part for pair in parts for part in pair))


def version_of(tensor: Tensor) -> int:
    """Return torch's count of the changes made in place, which goes up with each that autograd can see.

    Writing to `tensor.data` is not counted. -1 for tensors made in inference mode, which count none and cannot be
    changed outside of it.

    Example:
        >>> weight = torch.ones(2)
        >>> before = version_of(weight)
        >>> version_of(weight.mul_(2)) > before
        True
    """
    return -1 if tensor.is_inference() else tensor._version


def _bytes_of(part: Tensor | np.ndarray | bytes) -> memoryview | bytes:
    """The bytes of one part, without a copy where it is contiguous on the CPU."""
    if isinstance(part, Tensor):
        if part.is_meta:
            raise ValueError(f"A tensor of shape {tuple(part.shape)} on the meta device has no values to hash.")
        part = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part
