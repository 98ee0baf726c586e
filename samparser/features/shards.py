"""Entries of many images in one file: fewer and larger files, of which a single entry is read without the others."""

from __future__ import annotations

import itertools
import json
import struct
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from samparser._files import replacing

# In place of names, by the bytes of a value.
_TYPES = {"I8": torch.int8, "F16": torch.float16, "F32": torch.float32}
_OF_SIZE = {dtype.itemsize: dtype for dtype in _TYPES.values()}
# What a header raises that is not what `Shards.write` wrote.
_NO_SHARD = (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error)
_LONGEST_HEADER = 100_000_000  # of safetensors itself


class _OfAnotherModelError(ValueError):
    """A whole shard, in the wrong folder."""


class Found(NamedTuple):
    """An entry as it is in a shard.

    Attributes:
        path: The shard.
        stored: Its tensors by name, flat.
        checksum: What their SHA-256 was when they were written.
    """

    path: Path
    stored: dict[str, Tensor]
    checksum: str


class Shards:
    """The shards of a folder: safetensors files with entries of many images, each written once and never changed.

    Where an entry lies is kept in memory, about 300 bytes for each. Files are opened when they are read, and what is
    read is asked for in one piece. Where an image is in several shards, the newest counts. A file that is cut off, or
    belongs to another model, is named in a warning and passed over: its images are not there.

    Args:
        folder: Where they are.
        fingerprint: What the features were computed with.
        names: Of the tensors of an entry.
    """

    def __init__(self, folder: Path, fingerprint: str, names: list[str]) -> None:
        self.folder, self._fingerprint, self._names = folder, fingerprint, names
        self._layout = struct.Struct("<I32s" + "QQB" * len(names))
        # Threads may look for shards at the same time: a number is given once, to a shard that may have another too.
        self._numbers = itertools.count()
        self._paths: dict[int, Path] = {}
        self._where: dict[bytes, bytes] = {}
        self._seen: set[str] = set()
        self.unreadable: list[Path] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # The files tell a worker process all the rest.
        return Shards, (self.folder, self._fingerprint, self._names)

    def refresh(self) -> bool:
        """Look for shards that came since, from this process or another, and return whether there were any."""
        found = {path.name for path in self.folder.glob("[!.]*.safetensors")} - self._seen
        for name in sorted(found):
            self._seen.add(name)
            try:
                self._take_in(self.folder / name)
            except FileNotFoundError:
                continue
            except (OSError, *_NO_SHARD) as error:
                if not isinstance(error, (OSError, _OfAnotherModelError)):
                    self.unreadable.append(self.folder / name)
                warnings.warn(
                    f"{self.folder / name} is damaged and passed over ({error}). Filling the cache computes its images "
                    "anew.",
                    stacklevel=4,
                )
        return bool(found)

    def read(self, key: str) -> Found | None:
        """Return the entry of an image, unchecked; None where no shard that is known so far has it.

        Raises:
            OSError, ValueError: It cannot be read.
        """
        packed = self._where.get(bytes.fromhex(key))
        if packed is None:
            return None
        shard, checksum, *spans = self._layout.unpack(packed)
        path = self._paths[shard]
        stored = {}
        try:
            with path.open("rb") as file:
                for name, begin, values, size in zip(self._names, spans[::3], spans[1::3], spans[2::3], strict=True):
                    tensor = torch.empty(values, dtype=_OF_SIZE[size])
                    file.seek(begin)
                    if file.readinto(tensor.view(torch.uint8).numpy().data) != values * size:
                        raise ValueError("it is cut off")
                    stored[name] = tensor
        except FileNotFoundError:
            return None
        return Found(path, stored, checksum.hex())

    def write(self, entries: Mapping[str, tuple[dict[str, Tensor], str]]) -> None:
        """Write a shard with the tensors and the checksum of each image; it appears whole or not at all."""
        # In the order of time, so that what was computed anew comes after what was damaged.
        path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex}.safetensors"
        tensors = {f"{key}.{name}": tensor for key, (stored, _) in entries.items() for name, tensor in stored.items()}
        metadata = {"fingerprint": self._fingerprint, **{key: checksum for key, (_, checksum) in entries.items()}}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self.refresh()

    def size(self) -> tuple[int, int]:
        """Return the number of entries and the bytes of all shards on disk."""
        self.refresh()
        return len(self._where), sum(path.stat().st_size for path in self.folder.glob("[!.]*.safetensors"))

    def remove_unreadable(self) -> None:
        """Delete the files of which no entry can be read."""
        self.refresh()
        while self.unreadable:
            self.unreadable.pop().unlink(missing_ok=True)

    def _take_in(self, path: Path) -> None:
        """Remember where each entry of a file lies; `_NO_SHARD` is raised where it is no whole shard of this cache."""
        header, start = _header_of(path)
        metadata = header.pop("__metadata__", {})
        if metadata.pop("fingerprint", None) != self._fingerprint:
            raise _OfAnotherModelError("it belongs to another model")
        number, where = next(self._numbers), {}
        for key, checksum in metadata.items():
            spans: list[int] = []
            for name in self._names:
                about = header[f"{key}.{name}"]
                begin, end = about["data_offsets"]
                size = _TYPES[about["dtype"]].itemsize
                spans += (start + begin, (end - begin) // size, size)
            where[bytes.fromhex(key)] = self._layout.pack(number, bytes.fromhex(checksum), *spans)
        self._paths[number] = path
        self._where |= where


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, which is as long as that says, and where its data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LONGEST_HEADER else b""
    header = json.loads(text)
    ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
    if path.stat().st_size != 8 + length + max(ends, default=0):
        raise ValueError("it is cut off")
    return header, 8 + length
