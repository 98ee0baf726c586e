"""Splits that the names of folders and files say: train/, val/, test/ and what else they are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}
_SPLIT_OF = {word: split for split, words in SPLIT_FOLDERS.items() for word in words}


def split_of(name: str | PurePath) -> str | None:
    """Return the split that a file's name or its folders say, the innermost first; None if they say none.

    >>> split_of("valid/labels/a.json"), split_of("labels/train.json"), split_of("labels/trained.json")
    ('val', 'train', None)
    """
    path = PurePath(name)
    parts = (part.lower() for part in reversed((*path.parts[:-1], path.stem)))
    return next((_SPLIT_OF[part] for part in parts if part in _SPLIT_OF), None)


def splits_of(files: Iterable[Path], root: Path) -> tuple[str, ...]:
    """Return the splits that files below a root are divided into; none if one of them lies in no split."""
    found = {split_of(path.relative_to(root)) for path in files}
    return () if None in found else tuple(split for split in SPLIT_FOLDERS if split in found)


def of_split(files: Iterable[Path], root: Path, split: str | None) -> list[Path]:
    """Return the files of a split; all of them for None."""
    return [path for path in files if split is None or split_of(path.relative_to(root)) == split]
