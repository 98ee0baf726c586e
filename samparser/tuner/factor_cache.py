"""Factors of weights kept on disk, for adapters on many layers: reading takes a fiftieth of the time of an SVD.

Off unless a folder is given, by argument or by the environment variable ``SAMPARSER_FACTOR_CACHE``. Each weight has
one safetensors file named by the hash of its values, so one folder serves any number of models; a changed weight has
another name and is never mixed up with the old one. Deleting the folder loses nothing but time. What it saves and what
it takes on disk is in docs/method.md.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samparser._files import replacing
from samparser.tuner.factors import Factors, factorize, storage_dtype
from samparser.tuner.fingerprint import value_hash
from samparser.tuner.shapes import Float

ENVIRONMENT = "SAMPARSER_FACTOR_CACHE"

# Part of every file's name: raise it when `factorize` gives other bases for the same weight.
_VERSION = "1"


def cached_factorize(matrix: Float[Tensor, "out fan_in"], folder: str | Path | None = None) -> Factors:
    """`samparser.tuner.factors.factorize` through a cache on disk: bit for bit what it gave when the cache was filled.

    Safe with several processes on one folder: files are moved into place whole. A damaged file is reported, ignored and
    written anew; a folder that cannot be written to is reported and the factors are returned all the same.

    Args:
        matrix: The folded weight.
        folder: Where the files are; made when missing. None takes the environment variable
            ``SAMPARSER_FACTOR_CACHE``, and where that is empty too, nothing is read or written.

    Raises:
        ValueError: The matrix cannot be factored.
    """
    folder = folder or os.environ.get(ENVIRONMENT)
    if not folder or matrix.is_meta:
        return factorize(matrix)
    path = Path(folder).expanduser() / f"{_key(matrix)}.safetensors"
    factors = _read(path, matrix) if path.exists() else None
    if factors is None:
        factors = factorize(matrix)
        _write(path, factors)
    return factors


def _key(matrix: Tensor) -> str:
    rows, columns = matrix.shape
    return f"v{_VERSION}-{rows}x{columns}-{_name(storage_dtype(matrix))}-{value_hash(matrix)[:32]}"


def _read(path: Path, matrix: Tensor) -> Factors | None:
    """The factors in a file, or None with a warning when they are damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = [file.get_tensor(name) for name in Factors._fields]
            expected = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        _warn_damaged(path, str(error))
        return None
    factors = Factors(*tensors)
    (out, fan_in), rank = matrix.shape, min(matrix.shape)
    if [tuple(t.shape) for t in factors] != [(out, rank), (rank,), (rank, fan_in)]:
        _warn_damaged(path, f"it holds factors of shapes {[tuple(t.shape) for t in factors]}")
        return None
    if any(t.dtype != storage_dtype(matrix) for t in factors) or _checksum(factors) != expected:
        _warn_damaged(path, "its checksum does not fit its content")
        return None
    return Factors(*(t.to(matrix.device) for t in factors))


def _warn_damaged(path: Path, why: str) -> None:
    warnings.warn(
        f"The cached factors in {path} are damaged ({why}). They are computed and written anew.", stacklevel=4
    )


def _write(path: Path, factors: Factors) -> None:
    tensors = Factors(*(t.cpu() for t in factors))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors._asdict(), temporary, metadata={"sha256": _checksum(tensors)})
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"Could not keep factors in the cache folder {path.parent}: {error}. They will be computed again next "
            f"time. Unset {ENVIRONMENT}, or name a folder that has room and can be written to.",
            stacklevel=3,
        )


def _checksum(factors: Factors) -> str:
    digest = hashlib.sha256()
    for tensor in factors:
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
