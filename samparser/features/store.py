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

_NAME = "features"


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
        shape: Of every entry.
        dtype: torch.float16 or torch.float32. An entry whose values do not fit into float16 is stored as float32.
    """

    folder: Path
    fingerprint: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def entry_bytes(self) -> int:
        """Return the size of an entry on disk, a header of a few hundred bytes aside."""
        return int(torch.Size(self.shape).numel() * self.dtype.itemsize)

    def path(self, key: str) -> Path:
        """Return the file of an image's features."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor:
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
                features = file.get_tensor(_NAME).clone()  # a copy: what is compared is what is used
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
        if tuple(features.shape) != self.shape or features.dtype not in (self.dtype, torch.float32):
            raise DamagedFeaturesError(
                f"{path} holds {features.dtype} {tuple(features.shape)} instead of {self.dtype} {self.shape}. {_REFILL}"
            )
        if metadata.get("sha256") != sha256_of(features):
            raise DamagedFeaturesError(f"{path} has changed since it was written: its checksum differs. {_REFILL}")
        return features

    def write(self, key: str, features: Tensor) -> Tensor:
        """Store the features of an image and return them as stored; the file appears whole or not at all.

        Raises:
            ValueError: The features have another shape than the store's, or are not finite.
        """
        if tuple(features.shape) != self.shape:
            raise ValueError(f"Features have shape {tuple(features.shape)}, the store's is {self.shape}.")
        if not bool(features.isfinite().all()):
            raise ValueError("The image encoder gave features that are not finite; the model's weights are broken.")
        # In float16 nothing above 65504 has a value: such an entry keeps float32.
        stored = features.detach().to("cpu", torch.float32)
        narrow = stored.to(self.dtype)
        if bool(narrow.isfinite().all()):
            stored = narrow
        stored = stored.contiguous()
        metadata = {"fingerprint": self.fingerprint, "image": key, "sha256": sha256_of(stored)}
        with replacing(self.path(key)) as temporary:
            save_file({_NAME: stored}, temporary, metadata=metadata)
        return stored

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
