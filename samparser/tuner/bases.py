"""Bases of a layer: the SVD factors of its weight, shared by its adapters, never saved, cached on disk if wanted.

The cache is for adapters on many layers: reading takes a fiftieth of the time of an SVD. It is off unless the
environment variable `SAMPARSER_FACTOR_CACHE` names a folder. Each weight has one safetensors file named by the hash
of its values, so one folder serves any number of models; a changed weight has another name and is never mixed up with
the old one. Deleting the folder loses nothing but time. What it saves and what it takes on disk is in docs/method.md.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samparser._files import replacing
from samparser._hashing import sha256_of

from .factors import Factors, factorize, fold, storage_dtype

ENVIRONMENT = "SAMPARSER_FACTOR_CACHE"

# Part of every file's name: raise it when `factorize` gives other bases for the same weight.
_VERSION = "1"


def bases_of(name: str, weight: Tensor, *, fan_in_fan_out: bool, rounded_to: torch.dtype | None = None) -> Factors:
    """Factor a layer's weight; a weight on the meta device gives bases that have shapes only.

    The factors are plain tensors, not buffers: they follow the layer to its device, keep their dtype when the model is
    cast, and stay out of state dicts and out of the buffers that DistributedDataParallel sends around in every step.

    Args:
        name: The layer's name, for the message.
        weight: In any shape that a supported layer has.
        fan_in_fan_out: The weight is stored as (in, out).
        rounded_to: Round the weight to this dtype first, for adapters that were trained on it so rounded.

    Raises:
        ValueError: The weight cannot be factored; the message names the layer.
    """
    matrix = fold(weight.detach(), fan_in_fan_out=fan_in_fan_out)
    if weight.is_meta:
        out, fan_in = matrix.shape
        rank = min(out, fan_in)
        shapes = (out, rank), (rank,), (rank, fan_in)
        return Factors(*(torch.empty(shape, device="meta", dtype=storage_dtype(weight)) for shape in shapes))
    if rounded_to is not None:
        matrix = matrix.to(rounded_to).to(storage_dtype(weight))
    try:
        return cached_factorize(matrix)
    except ValueError as error:
        raise ValueError(f"{name}: {error} To leave this layer as it is, name it in exclude_modules.") from error


def as_factored(weight: Tensor, rounded_to: torch.dtype | None) -> Tensor:
    """Give the weight as it was factored: as it is, or rounded to the dtype in which the adapters were trained."""
    return weight if rounded_to is None else weight.detach().to(rounded_to)


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that can be read here and now.

    Not without values, and not inside torch.func, compiling or sharding, whose tensors are subclasses or wrapped.
    """
    try:
        # Without values: 0 (meta, or memory that FSDP has freed). Wrapped by vmap or grad: an error.
        return tensor.data_ptr() != 0 and type(tensor.data) is Tensor and not tensor.is_meta
    except RuntimeError:
        return False


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a weight that is sharded over processes, which all of them have to ask for; give others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@dataclass(frozen=True)
class WeightSample:
    """A few hundred entries of a weight, which tell when somebody wrote other values into its memory.

    Comparing them takes some twenty microseconds, whatever the size of the weight.
    """

    places: tuple[Tensor, ...]
    values: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> WeightSample | None:
        """Take a sample; None of a weight whose values cannot be read."""
        if not is_plain(weight) or not weight.numel():
            return None
        spread = torch.linspace(0, weight.numel() - 1, min(weight.numel(), 256), dtype=torch.float64).long()
        places = torch.unravel_index(spread.to(weight.device), weight.shape)
        return cls(places, weight.detach()[places].clone())

    def is_of(self, weight: Tensor) -> bool:
        """Tell whether a weight still has these entries, up to the noise that a moving average leaves in last bits.

        One that cannot be compared counts as unchanged.
        """
        same_kind = weight.dtype == self.values.dtype and weight.device == self.values.device
        if not same_kind or not is_plain(weight) or weight.ndim != len(self.places):
            return True
        error = (weight.detach()[self.places] - self.values).abs().max()
        return bool(error <= 64 * torch.finfo(weight.dtype).eps * self.values.abs().max())


def value_hash(weight: Tensor) -> str:
    """Hash the values of a weight in the dtype in which it is factored, so that equal bases have equal hashes.

    A bfloat16 weight and its exact copy in float32 have the same hash, as they have the same bases.

    Raises:
        ValueError: The weight is on the meta device and has no values.
    """
    return sha256_of(weight.detach().to(storage_dtype(weight)))


def cached_factorize(matrix: Tensor) -> Factors:
    """Factor a folded weight through the cache on disk: bit for bit what `factorize` gave when it was filled.

    Safe with several processes on one folder: files are moved into place whole. A damaged file is reported, ignored and
    written anew; a folder that cannot be written to is reported and the factors are returned all the same. Without a
    folder in the environment variable `SAMPARSER_FACTOR_CACHE` nothing is read or written.

    Raises:
        ValueError: The matrix cannot be factored.
    """
    folder = os.environ.get(ENVIRONMENT)
    if not folder or matrix.is_meta:
        return factorize(matrix)
    rows, columns = matrix.shape
    dtype = str(storage_dtype(matrix)).removeprefix("torch.")
    path = Path(folder).expanduser() / f"v{_VERSION}-{rows}x{columns}-{dtype}-{value_hash(matrix)[:32]}.safetensors"
    factors = _read(path, matrix) if path.exists() else None
    if factors is None:
        factors = factorize(matrix)
        _write(path, factors)
    return factors


def _read(path: Path, matrix: Tensor) -> Factors | None:
    """The factors in a file, or None with a warning when they are damaged."""
    (out, fan_in), rank, damage = matrix.shape, min(matrix.shape), ""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            factors = Factors(*(file.get_tensor(name) for name in Factors._fields))
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
        damage = str(error)
    else:
        shapes = [tuple(t.shape) for t in factors]
        if shapes != [(out, rank), (rank,), (rank, fan_in)]:
            damage = f"it holds factors of shapes {shapes}"
        elif any(t.dtype != storage_dtype(matrix) for t in factors) or sha256_of(*factors) != checksum:
            damage = "its checksum does not fit its content"
        else:
            return factors.to(matrix.device)
    warnings.warn(
        f"The cached factors in {path} are damaged ({damage}). They are computed and written anew.", stacklevel=3
    )
    return None


def _write(path: Path, factors: Factors) -> None:
    factors = factors.to(torch.device("cpu"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(factors._asdict(), temporary, metadata={"sha256": sha256_of(*factors)})
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"Could not keep factors in the cache folder {path.parent}: {error}. They will be computed again next "
            f"time. Unset {ENVIRONMENT}, or name a folder that has room and can be written to.",
            stacklevel=3,
        )
