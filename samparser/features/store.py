"""Cached features on disk: one safetensors file for each image, written whole, verified whenever it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samparser._files import remove_abandoned, replacing
from samparser._hashing import sha256_of

# Of the tensors of an entry, by their place.
_NAME = "features{}".format


class FeaturesError(RuntimeError):
    """An entry of the cache cannot be used; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        # From a worker of a DataLoader the message comes back with the worker's whole traceback before it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class MissingFeaturesError(FeaturesError):
    """The cache holds nothing for this image."""


class DamagedFeaturesError(FeaturesError):
    """An entry of the cache is cut off or altered; the message names the file."""


@dataclass(frozen=True)
class FeatureStore:
    """The entries of one fingerprint in a folder. Holds no model and no open file, so worker processes can have it.

    Attributes:
        folder: Where the entries are; other fingerprints have folders of their own beside it.
        fingerprint: What the features were computed with; every entry carries it and is refused under another one.
        shapes: Of the tensors of every entry.
        dtype: torch.float16 or torch.float32. A tensor whose values do not fit into float16 is stored as float32.
    """

    folder: Path
    fingerprint: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def entry_bytes(self) -> int:
        """Return the size of an entry on disk, a header of a few hundred bytes aside."""
        return sum(torch.Size(shape).numel() for shape in self.shapes) * self.dtype.itemsize

    def path(self, key: str) -> Path:
        """Return the file of an image's features."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> tuple[Tensor, ...]:
        """Return the features of an image, after comparing their checksum.

        Args:
            key: The image's, see `image_key`.

        Raises:
            MissingFeaturesError: There is no entry.
            DamagedFeaturesError: The entry is cut off, altered, or was written with something else.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # A copy: what is compared is what is used.
                features = tuple(file.get_tensor(_NAME(place)).clone() for place in range(len(self.shapes)))
        except FileNotFoundError:
            raise MissingFeaturesError(
                f"No features of this image in {self.folder}: {path.name} is not there. Fill the cache with all images "
                "before it is used, and check that no image has changed since. A run that stopped here goes on with "
                "--resume, which fills what is missing."
            ) from None
        except (SafetensorError, OSError) as error:
            raise DamagedFeaturesError(f"{path} cannot be read ({error}). {_REFILL}") from error
        if (metadata.get("fingerprint"), metadata.get("image")) != (self.fingerprint, key):
            raise DamagedFeaturesError(f"{path} belongs to another model or image. {_REFILL}")
        for tensor, shape in zip(features, self.shapes, strict=True):
            if tuple(tensor.shape) != shape or tensor.dtype not in (self.dtype, torch.float32):
                raise DamagedFeaturesError(
                    f"{path} holds {tensor.dtype} {tuple(tensor.shape)} instead of {self.dtype} {shape}. {_REFILL}"
                )
        if metadata.get("sha256") != sha256_of(*features):
            raise DamagedFeaturesError(f"{path} has changed since it was written: its checksum differs. {_REFILL}")
        return features

    def write(self, key: str, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store the features of an image and return them as stored; the file appears whole or not at all.

        Raises:
            ValueError: The features have another shape than the store's, or are not finite.
        """
        shapes = tuple(tuple(tensor.shape) for tensor in features)
        if shapes != self.shapes:
            raise ValueError(f"Features have shapes {shapes}, the store's are {self.shapes}.")
        if not all(bool(tensor.isfinite().all()) for tensor in features):
            raise ValueError("The image encoder gave features that are not finite; the model's weights are broken.")
        stored = tuple(self._narrow(tensor.detach().to("cpu", torch.float32)).contiguous() for tensor in features)
        metadata = {"fingerprint": self.fingerprint, "image": key, "sha256": sha256_of(*stored)}
        with replacing(self.path(key)) as temporary:
            save_file({_NAME(place): tensor for place, tensor in enumerate(stored)}, temporary, metadata=metadata)
        return stored

    def _narrow(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the store's type; one with values above 65504, which float16 has not, as it is."""
        narrow = tensor.to(self.dtype)
        return narrow if bool(narrow.isfinite().all()) else tensor

    def size(self) -> tuple[int, int]:
        """Return the number of entries and their bytes on disk."""
        sizes = [path.stat().st_size for path in self.folder.glob("??/[!.]*.safetensors")]
        return len(sizes), sum(sizes)

    def remove_abandoned(self) -> None:
        """Delete temporary files that a killed process left an hour ago or earlier; several may fill one folder."""
        remove_abandoned(self.folder)


_REFILL = (
    "Fill the cache again: what is damaged is computed anew. A run that stopped here goes on with --resume, which "
    "fills the cache first."
)
