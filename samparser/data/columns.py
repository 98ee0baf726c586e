"""Columns of numbers and of texts that the workers of a data loader share instead of copying them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import torch


class Column:
    """One array for all processes.

    Forked workers see the same pages, as nothing in them counts references; for spawned ones torch moves a tensor to
    shared memory, once for all workers. As Python objects, every worker would have a copy of its own sooner or later.

    Args:
        values: The array.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._tensor = torch.from_numpy(np.array(values))

    @property
    def values(self) -> np.ndarray:
        """The array. Not to be kept: sharing the column moves its memory."""
        return self._tensor.numpy()

    def __len__(self) -> int:
        return len(self._tensor)


class _Names(Sequence[str]):
    """What is common to sequences of texts that make each text when it is asked for: they compare and add as lists."""

    def _text(self, index: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"Text {index} of {len(self)}.")
        return self._text(int(index) % len(self))

    def __iter__(self) -> Iterator[str]:
        return (self._text(index) for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __add__(self, other: Iterable[str]) -> list[str]:
        return [*self, *other]

    def __radd__(self, other: Iterable[str]) -> list[str]:
        return [*other, *self]

    def __repr__(self) -> str:
        return repr(list(self))


class Texts(_Names):
    """Texts in one block of bytes.

    Args:
        texts: The texts, in order.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = Column(np.cumsum([0, *map(len, encoded)], dtype=np.int64))
        self._bytes = Column(np.frombuffer(bytearray().join(encoded), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _text(self, index: int) -> str:
        start, end = self._ends.values[index : index + 2].tolist()
        return self._bytes.values[start:end].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        ends, whole = self._ends.values.tolist(), self._bytes.values.tobytes()
        return (whole[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(ends))


class ChosenNames(_Names):
    """Names of samples that are taken from several sources, none of them copied.

    Args:
        sources: The names in each source.
        which: int32 (N,), the source of each sample.
        index: int64 (N,), its place there.
    """

    def __init__(self, sources: Sequence[Sequence[str]], which: Column, index: Column) -> None:
        self._sources, self._which, self._index = sources, which, index

    def __len__(self) -> int:
        return len(self._index)

    def _text(self, index: int) -> str:
        return self._sources[int(self._which.values[index])][int(self._index.values[index])]

    def __iter__(self) -> Iterator[str]:
        everything: list[Any] = [list(names) for names in self._sources]
        return (everything[n][i] for n, i in zip(self._which.values.tolist(), self._index.values.tolist(), strict=True))
