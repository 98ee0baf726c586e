"""Leakage between training and validation: finds an image that is both trained on and scored."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from pathlib import Path
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
    return _shared_file(_files(train_set), _files(eval_set))


def _shared_file(train: dict[str, Path], scored: dict[str, Path]) -> tuple[str, str] | None:
    by_size = defaultdict(list)
    for name, path in train.items():
        by_size[path.stat().st_size].append((name, path))
    probes: dict[Path, bytes] = {}
    for name, path in scored.items():
        for other, twin in by_size.get(path.stat().st_size, ()):
            for one in (path, twin):
                probes.setdefault(one, _probe(one))
            if probes[path] == probes[twin] and filecmp.cmp(path, twin, shallow=False):
                return other, name
    return None


def _files(dataset: Any) -> dict[str, Path]:
    """Return the image file of each sample, for sets whose samples are named by their file below `root`."""
    root = getattr(dataset, "root", None)
    if root is None:
        return {}
    folder = root if root.is_dir() else root.parent
    return {name: folder / name for name in dataset.names if (folder / name).is_file()}


def _probe(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(path.stat().st_size // 2)
        return file.read(_PROBE)
