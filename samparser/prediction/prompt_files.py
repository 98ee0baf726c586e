"""Prompts from a JSON file, matched with the images that they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samparser._words import did_you_mean, shortened

_FAR = 10_000_000  # no image has so many pixels along a side


def read_prompts(file: str | Path, files: Mapping[str, Path], columns: int) -> dict[str, Sequence[Any]]:
    """Return the rows of a prompt file by the NAME of their image.

    Args:
        file: JSON, {image: [[x0, y0, x1, y1], ...]} or {image: [[x, y], ...]}.
        files: The image files by NAME. An image goes by its NAME, its file name or its path.
        columns: 4 for boxes, 2 for points.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such JSON, a row is none of numbers, or an image is unknown or named twice.
    """
    shape = "[x, y]" if columns == 2 else "[x0, y0, x1, y1]"
    expected = f'{{"image.png": [{shape}, ...], ...}}'
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no prompt file {file}. It must hold {expected}.")
    content = _read(file, expected)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must hold {expected}.")
    if {"images", "annotations"} <= content.keys():
        raise ValueError(
            f"{file} is a COCO annotation file; prompts are {expected}, with COCO's (x, y, width, height) written as "
            "(x, y, x + width, y + height). To score a model on a COCO file use evaluate."
        )
    names: dict[str, list[str]] = {}
    for name, path in files.items():
        for key in {name, path.name, str(path)}:
            names.setdefault(key, []).append(name)
    prompts: dict[str, Sequence[Any]] = {}
    for key, rows in content.items():
        if fault := _fault(rows, columns, shape):
            raise ValueError(f"{file}, {key!r}: {fault}")
        matching = names.get(key, [])
        if len(matching) != 1:
            several = f"matches {len(matching)} images: {shortened(matching, 3)}."
            state = several if matching else f"matches none of the images.{did_you_mean(key, names)}"
            raise ValueError(f"{file}: {key!r} {state} Images go by their path below the folder given, or file name.")
        if matching[0] in prompts:
            raise ValueError(f"{file} names the image {matching[0]} twice.")
        prompts[matching[0]] = rows
    return prompts


def _read(file: str | Path, expected: str) -> Any:
    """Read the JSON; a key that stands twice is refused, where json would keep the last one without a word."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for number, key in enumerate(keys) if key in keys[:number])
            raise ValueError(f"{twice!r} stands twice; put all its rows into one list")
        return found

    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply. It must hold {expected}.") from None
    except ValueError as error:  # JSON's and Unicode's own, and whole numbers of thousands of digits
        raise ValueError(f"{file} is not JSON that can be read ({error}). It must hold {expected}.") from error


def _fault(rows: Any, columns: int, shape: str) -> str | None:
    """Say what is wrong with the rows of an image; None for nothing."""
    if not isinstance(rows, list) or any(not isinstance(row, list) or len(row) != columns for row in rows):
        return f"expected a list of {shape}, got {_shown(rows)}."
    for number, row in enumerate(rows):
        for value in row:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"expected a list of {shape}, got {_shown(value)} in row {number}, {_shown(row)}."
            if not abs(value) < _FAR:  # not a number is not less than anything
                return f"row {number}, {_shown(row)}, has {_shown(value)}, which is no pixel of an image."
    return None


def _shown(value: Any) -> str:
    """Show the start of a value; whole numbers of thousands of digits have no text."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."
