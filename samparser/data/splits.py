"""Which samples of a pool go to train, val and test."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from samparser._untrusted import parse_json

from .readers.paths import read_text
from .readers.reader import Reader
from .sample import DataError
from .settings import DataSettings

_SLICE = re.compile(r"#\d{4,}$")


def volume_of(name: str) -> str:
    """Return the volume that a slice belongs to, by the slice's name; an image is its own.

    >>> volume_of("images/case_1#0012"), volume_of("images/a.png")
    ('images/case_1', 'images/a.png')
    """
    return _SLICE.sub("", name)


def drawn(names: Sequence[str], val_ratio: float, settings: DataSettings) -> dict[str, list[int]]:
    """Divide at random: "train", "val" and "test" -> indices. With no part for test, test is val.

    Parts that are asked for are not empty. With `split_volumes`, the default, whole volumes are divided.
    """
    units = _by_unit(names) if settings.split_volumes else {name: [index] for index, name in enumerate(names)}
    order = list(units)
    order = [order[i] for i in np.random.default_rng([settings.split_seed, 0]).permutation(len(order))]
    ratios = (val_ratio, settings.test_ratio)
    val, test = (max(1, round(len(order) * ratio)) if ratio and len(order) > 2 else 0 for ratio in ratios)
    parts = {"val": order[:val], "test": order[val : val + test] if settings.test_ratio else order[:val]}
    parts["train"] = order[val + test :]
    return {part: sorted(index for unit in chosen for index in units[unit]) for part, chosen in parts.items()}


def listed(root: Path, settings: DataSettings, reader: Reader, split: str) -> list[int]:
    """Return the indices of the samples that the split file gives to `split`, in its order.

    A volume's name gives all of its slices.

    Raises:
        DataError: The file cannot be read, lacks the split, lists a name in two parts, or names that match nothing.
    """
    base = root.parent if root.is_file() else root
    lists = read_split_file(base, str(settings.split_file))
    if split not in lists:
        raise DataError(
            f"The split file {settings.split_file} has no {split} split; it has {', '.join(lists) or 'none'}."
        )
    known = _by_any_name(reader.names)
    owners: dict[int | str, str] = {}
    for part, names in lists.items():
        for name in names:
            for place in known.get(name, [name]):
                if owners.setdefault(place, part) != part:
                    raise DataError(f"{settings.split_file} lists {name} under {owners[place]} and under {part}.")
    left_out = {key for skip in reader.skipped for key in _keys(volume_of(Path(skip.where).as_posix()))}
    indices, unknown = [], []
    for name in dict.fromkeys(lists[split]):
        if name in known:
            indices += known[name]
        elif name not in left_out:
            unknown.append(name)
    if unknown:
        raise DataError(
            f"{len(unknown)} of the {len(lists[split])} names that {settings.split_file} lists for {split} name no "
            f"image or several, {unknown[0]!r} for instance. Names of this set look like {reader.names[0]!r}; the "
            f"file name alone is enough where it is unique."
        )
    return list(dict.fromkeys(indices))


def _by_unit(names: Sequence[str]) -> dict[str, list[int]]:
    units = defaultdict(list)
    for index, name in enumerate(names):
        units[volume_of(name)].append(index)
    return units


def _keys(name: str) -> set[str]:
    """Return what an image or volume may be called: its path, its file name, its file name without suffix."""
    return {name, PurePosixPath(name).name, PurePosixPath(name).stem}


def _by_any_name(names: Sequence[str]) -> dict[str, list[int]]:
    """Return indices by every name that means one image or one volume only."""
    owners = defaultdict(set)
    units = _by_unit(names)
    for unit in units:
        for key in _keys(unit):
            owners[key].add(unit)
    found = {key: units[next(iter(mine))] for key, mine in owners.items() if len(mine) == 1}
    return found | units | {name: [index] for index, name in enumerate(names)}


def read_split_file(base: Path, split_file: str) -> dict[str, list[str]]:
    """Return the names listed for each split."""
    try:
        if split_file.endswith(".json"):
            lists = parse_json(_text(base / split_file))
            if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
                raise DataError(f'{base / split_file} must be of the form {{"train": [names], "val": [names]}}.')
            return {part: [str(name) for name in names] for part, names in lists.items()}
        if "{split}" not in split_file:
            raise DataError(f"split_file needs {{split}} in its name, or to be a JSON file; got {split_file!r}.")
        files = {part: base / split_file.format(split=part) for part in ("train", "val", "test")}
        return {
            part: [line.strip() for line in _text(path).splitlines() if line.strip()]
            for part, path in files.items()
            if path.exists()
        }
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"The split file {base / split_file} cannot be read: {error}.") from error


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except DataError as error:
        raise DataError(f"The split file {path} cannot be read: {error}") from error
