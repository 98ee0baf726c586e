"""Leakage between training and validation: finds an image that is both trained on and scored."""

from __future__ import annotations

import filecmp
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

_PROBE = 4096  # bytes from the middle of a file: enough to tell images of one size apart


def shared_image(train_set: Any, eval_set: Any, most: int = 20) -> tuple[str, str] | None:
    """Return the names, in the training and in the validation set, of one image that both hold, or None.

    Found are images of one name with the same pixels (up to `most` of them are opened), and image files with the
    same content under any names. A copy that was resized or saved anew is not found.
    """
    if train_set is eval_set:
        name = str(train_set[0].name)
        return name, name
    places = {name: index for index, name in enumerate(getattr(train_set, "names", ()))}
    shared = [(name, index) for index, name in enumerate(getattr(eval_set, "names", ())) if name in places]
    for name, index in shared[:most]:
        if np.array_equal(train_set[places[name]].image, eval_set[index].image):
            return name, name
    return _shared_file(train_set, eval_set)


def _shared_file(train_set: Any, eval_set: Any) -> tuple[str, str] | None:
    """Compare files of one size by a part of each, which is read once, and in full where that is the same."""
    by_size = defaultdict(list)
    for name, path, size in _files(train_set):
        by_size[size].append((name, path))
    parts: dict[str, bytes] = {}
    for name, path, size in _files(eval_set):
        for other, twin in by_size.get(size, ()):
            for one in (path, twin):
                if one not in parts:
                    parts[one] = _part(one, size)
            if parts[path] == parts[twin] and filecmp.cmp(path, twin, shallow=False):
                return other, name
    return None


def _files(dataset: Any) -> Iterator[tuple[str, str, int]]:
    """Yield name, path and bytes of each image file, for sets whose samples are named by their file below `root`."""
    root = getattr(dataset, "root", None)
    if root is None:
        return
    folder = root if root.is_dir() else root.parent
    for name in dataset.names:
        path = os.path.join(folder, name)
        with suppress(OSError, ValueError):
            state = os.stat(path)
            if stat.S_ISREG(state.st_mode):
                yield name, path, state.st_size


def _part(path: str, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(size // 2)
        return file.read(_PROBE)
