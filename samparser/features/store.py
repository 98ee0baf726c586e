"""Cached features on disk: a file for each image or for many, written whole, verified whenever it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samparser._files import remove_abandoned, replacing
from samparser._hashing import sha256_of

from .precision import channel_axis, from_stored, stored_bytes, stored_names, to_stored
from .shards import Shards


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

    An entry is a file of its own, or lies in a shard with others; a folder may have both, and they are read alike.

    Attributes:
        folder: Where the entries are; other fingerprints have folders of their own beside it.
        fingerprint: What the features were computed with; every entry carries it and is refused under another one.
        shapes: Of the tensors of every entry.
        dtype: torch.float16, torch.float32 or torch.int8, see `to_stored`. A tensor whose values do not fit into
            float16 is stored as float32.
        shards: The entries that lie together in a file.
    """

    folder: Path
    fingerprint: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    shards: Shards = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = stored_names(len(self.shapes), self.dtype)
        object.__setattr__(self, "shards", Shards(self.folder / "shards", self.fingerprint, names))

    @property
    def entry_bytes(self) -> int:
        """Return the size of an entry on disk, a header of a few hundred bytes aside."""
        return stored_bytes(self.shapes, self.dtype)

    def path(self, key: str) -> Path:
        """Return the file of an image's features, where they have one of their own."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> tuple[Tensor, ...]:
        """Return the features of an image, after comparing their checksum.

        Args:
            key: The image's, see `image_key`.

        Raises:
            MissingFeaturesError: There is no entry.
            DamagedFeaturesError: The entry is cut off, altered, or was written with something else.
        """
        damaged = None
        # What was damaged may have been computed anew since, by this process or another.
        for look in (self._in_known_shards, self._in_own_file, self._in_new_shards):
            try:
                stored = look(key)
            except DamagedFeaturesError as error:
                damaged = damaged or error
                continue
            if stored is not None:
                return from_stored(stored)
        raise damaged or MissingFeaturesError(
            f"No features of this image in {self.folder}: {self.path(key).name} is not there. Fill the cache with all "
            "images before it is used, and check that no image has changed since. A run that stopped here goes on with "
            "--resume, which fills what is missing."
        )

    def write(self, key: str, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Store the features of an image in a file of its own and return them as stored.

        The file appears whole or not at all.

        Raises:
            ValueError: The features have another shape than the store's, or are not finite.
        """
        stored, checksum = self.stored(features)
        metadata = {"fingerprint": self.fingerprint, "image": key, "sha256": checksum}
        with replacing(self.path(key)) as temporary:
            save_file(stored, temporary, metadata=metadata)
        return from_stored(stored)

    def stored(self, features: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], str]:
        """Return what is stored of features, and its checksum.

        Raises:
            ValueError: The features have another shape than the store's, or are not finite.
        """
        shapes = tuple(tuple(tensor.shape) for tensor in features)
        if shapes != self.shapes:
            raise ValueError(f"Features have shapes {shapes}, the store's are {self.shapes}.")
        if not all(bool(tensor.isfinite().all()) for tensor in features):
            raise ValueError(
                "The image encoder gave features that are not finite: the model's weights are broken, or too large for "
                "the float16 that it computes in."
            )
        stored = to_stored(tuple(tensor.detach() for tensor in features), self.dtype)
        return stored, sha256_of(*stored.values())

    def size(self) -> tuple[int, int]:
        """Return the number of entries and their bytes on disk."""
        sizes = [path.stat().st_size for path in self.folder.glob("??/[!.]*.safetensors")]
        together, bytes_ = self.shards.size()
        return len(sizes) + together, sum(sizes) + bytes_

    def remove_abandoned(self) -> None:
        """Delete shards that cannot be read, and temporary files that a killed process left an hour ago or earlier."""
        self.shards.remove_unreadable()
        remove_abandoned(self.folder)

    def _in_own_file(self, key: str) -> dict[str, Tensor] | None:
        path = self.path(key)
        names = stored_names(len(self.shapes), self.dtype)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # A copy: what is compared is what is used.
                stored = {name: file.get_tensor(name).clone() for name in names}
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise DamagedFeaturesError(f"{path} cannot be read ({error}). {_REFILL}") from error
        if (metadata.get("fingerprint"), metadata.get("image")) != (self.fingerprint, key):
            raise DamagedFeaturesError(f"{path} belongs to another model or image. {_REFILL}")
        for name, tensor in stored.items():
            shape = self._shape_of(name)
            if tuple(tensor.shape) != shape or tensor.dtype not in (self.dtype, torch.float32):
                raise DamagedFeaturesError(
                    f"{path} holds {tensor.dtype} {tuple(tensor.shape)} instead of {self.dtype} {shape}. {_REFILL}"
                )
        return self._compared(path, stored, metadata.get("sha256"))

    def _in_known_shards(self, key: str) -> dict[str, Tensor] | None:
        try:
            found = self.shards.read(key)
            if found is None:
                return None
            stored = {name: tensor.view(self._shape_of(name)) for name, tensor in found.stored.items()}
        except (OSError, ValueError, RuntimeError) as error:
            raise DamagedFeaturesError(
                f"The entry of {key} in {self.shards.folder} cannot be read ({error}). {_REFILL}"
            ) from error
        return self._compared(found.path, stored, found.checksum)

    def _in_new_shards(self, key: str) -> dict[str, Tensor] | None:
        return self._in_known_shards(key) if self.shards.refresh() else None

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of one of the tensors that are stored."""
        shape = self.shapes[int(name.removeprefix("features").removeprefix("scales"))]
        if name.startswith("features"):
            return shape
        channel = channel_axis(shape)
        return tuple(size if axis == channel else 1 for axis, size in enumerate(shape))

    def _compared(self, path: Path, stored: Mapping[str, Tensor], checksum: str | None) -> dict[str, Tensor]:
        if checksum != sha256_of(*stored.values()):
            raise DamagedFeaturesError(f"{path} has changed since it was written: its checksum differs. {_REFILL}")
        return dict(stored)


_REFILL = (
    "Fill the cache again: what is damaged is computed anew. A run that stopped here goes on with --resume, which "
    "fills the cache first."
)
