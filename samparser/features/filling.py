"""Filling a store: workers read and resize, the encoder takes batches, threads write, processes share it out."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from samparser.sam.families import Features

from .claims import Claims
from .keys import image_key
from .store import DamagedFeaturesError, FeatureStore, MissingFeaturesError

_WRITERS = 2  # threads
_IMAGES_OF_A_CLAIM = 8


class Prepared(NamedTuple):
    """An image as a worker hands it over.

    Attributes:
        place: Which one of the samples.
        key: See `image_key`.
        pixels: (3, S, S), what the encoder takes; None where the store has whole features of it.
        damage: What was wrong with those that are there, if anything.
    """

    place: int
    key: str
    pixels: Tensor | None
    damage: str | None


class MissingImages(Dataset[Prepared]):
    """Images ready for the encoder, where a store has no whole features of them.

    Args:
        samples: Items with an `image`.
        store: Where features may be.
        images: transformers' image processor of the model.
    """

    def __init__(self, samples: Sequence[Any], store: FeatureStore, images: Any) -> None:
        self._samples, self._store, self._images = samples, store, images

    def __getitem__(self, index: int) -> Prepared:
        """Read and resize one image, unless it need not be encoded."""
        image = self._samples[index].image
        key, damage = image_key(image), None
        try:
            self._store.read(key)
        except MissingFeaturesError:
            pass
        except DamagedFeaturesError as error:
            damage = f"{str(error).partition(' Fill the cache')[0]} It is computed anew now."
        else:
            return Prepared(index, key, None, None)
        return Prepared(index, key, pixels_of(image, self._images), damage)


def pixels_of(image: np.ndarray, images: Any) -> Tensor:
    """Return what the encoder takes for an image, uint8 RGB (H, W, 3): float (3, S, S)."""
    return images(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"][0]


@dataclass(eq=False)
class _Part:
    """Samples that one process claims together; in shards also what lies in one file."""

    indices: Sequence[int]
    name: str
    left: int = 0
    writes: list[Future[Any]] = field(default_factory=list)
    entries: dict[str, Any] = field(default_factory=dict)


class Filling:
    """One process's work on a store.

    Args:
        store: Where features go.
        samples: Anything with a length whose items have an `image`.
        images: transformers' image processor of the model.
        encode: Gives the features of each image of pixels (B, 3, S, S).
        batch: Images that it is given at a time.
        shards: Put so many images in a file; None: a file for each.
        workers: Processes that read and resize; 0: this one does, and the encoder waits for it.
        context: How they are started, as for a DataLoader.
        pinned: Put pixels where an accelerator can fetch them by itself.
    """

    def __init__(
        self,
        store: FeatureStore,
        samples: Sequence[Any],
        images: Any,
        encode: Callable[[Tensor], list[Features]],
        *,
        batch: int = 1,
        shards: int | None = None,
        workers: int = 0,
        context: str | None = None,
        pinned: bool = False,
    ) -> None:
        self._store, self._encode, self._batch, self._shards = store, encode, batch, shards
        self._dataset = MissingImages(samples, store, images)
        self._loading: dict[str, Any] = {"num_workers": workers, "pin_memory": pinned}
        if workers:
            self._loading["multiprocessing_context"] = context
        self._count = len(samples)
        self._parts: dict[int, _Part] = {}
        self._unclaimed: list[_Part] = []
        self._waiting: list[tuple[_Part, str, Tensor]] = []
        self._writes: deque[Future[Any]] = deque()
        self._seen: set[str] = set()
        self.encoded = 0
        self.waited = 0.0

    def run(self, process: tuple[int, int], advance: Callable[[], object]) -> None:
        """Encode and store what is missing, and wait for the parts that other processes are at.

        Args:
            process: `(rank, world size)`: this process takes every world-size-th sample.
            advance: Called for each sample that is there or on its way.

        Raises:
            ValueError: Features are not finite.
            OSError: The disk is full.
        """
        rank, world = process
        mine, size = range(rank, self._count, world), self._shards or max(_IMAGES_OF_A_CLAIM, self._batch)
        parts = [
            _Part(mine[start : start + size], f"{self._count}-{rank}-of-{world}-{start}-{size}")
            for start in range(0, len(mine), size)
        ]
        with Claims(self._store.folder / "claims") as self._claims, ThreadPoolExecutor(_WRITERS) as self._pool:
            try:
                while parts:
                    self._unclaimed = []
                    self._go_through(parts, advance)
                    parts = self._unclaimed
                    if parts:
                        self._claims.wait([part.name for part in parts])
            except BaseException:
                self._keep_what_is_encoded()
                raise

    def _go_through(self, parts: Sequence[_Part], advance: Callable[[], object]) -> None:
        loader = DataLoader(
            self._dataset,
            sampler=self._claimed(parts),
            batch_size=None,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # or the workers' seed would come from everybody's
            **self._loading,
        )
        images = iter(loader)
        while True:
            start = time.perf_counter()
            prepared = next(images, None)
            self.waited += time.perf_counter() - start
            if prepared is None:
                break
            self._take(prepared)
            advance()
        self._encode_waiting()
        while self._writes:
            self._writes.popleft().result()

    def _claimed(self, parts: Collection[_Part]) -> Iterator[int]:
        """Yield the indices of each part that can be claimed, when the workers get to it."""
        for part in parts:
            if not self._claims.take(part.name):
                self._unclaimed.append(part)
                continue
            part.left = len(part.indices)
            for index in part.indices:
                self._parts[index] = part
                yield index

    def _take(self, prepared: Prepared) -> None:
        part = self._parts.pop(prepared.place)
        if prepared.damage is not None:
            warnings.warn(prepared.damage, stacklevel=5)
        if prepared.pixels is None or prepared.key in self._seen:
            self._one_less(part)
            return
        self._seen.add(prepared.key)
        self._waiting.append((part, prepared.key, prepared.pixels))
        if len(self._waiting) == self._batch:
            self._encode_waiting()

    def _encode_waiting(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        encoded = self._encode(torch.stack([pixels for _, _, pixels in waiting]))
        self.encoded += len(waiting)
        for (part, key, _), features in zip(waiting, encoded, strict=True):
            part.writes.append(self._submit(self._write, part, key, features))
            self._one_less(part)
        # What waits to be written is in memory.
        while len(self._writes) > 2 * self._batch + 2:
            self._writes.popleft().result()

    def _write(self, part: _Part, key: str, features: Features) -> None:
        if self._shards is None:
            self._store.write(key, features)
        else:
            part.entries[key] = self._store.stored(features)

    def _one_less(self, part: _Part) -> None:
        part.left -= 1
        if part.left == 0:
            self._submit(self._finish, part)

    def _finish(self, part: _Part) -> None:
        for write in part.writes:  # they were submitted before, so a thread is free for each
            write.result()
        if part.entries:
            self._store.shards.write(part.entries)
            part.entries = {}
        self._claims.release(part.name)

    def _keep_what_is_encoded(self) -> None:
        """Write shards that are not full, after an error or an interrupt."""
        open_parts = {id(part): part for part in [*self._parts.values(), *(part for part, _, _ in self._waiting)]}
        with suppress(Exception):
            for part in open_parts.values():
                self._finish(part)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> Future[Any]:
        future = self._pool.submit(work, *arguments)
        self._writes.append(future)
        return future


def _as_it_is(item: Any) -> Any:
    return item
