"""Mutants of files: bits flipped, ends cut off, values of other types, files removed or replaced."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Mutant = tuple[str, Callable[[], None]]

# What a value in a JSON file may be by mistake or by malice.
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 1.5, float("inf"), float("nan"), "", "text", [], {}, [None], {"a": 1}, "x" * 10_000),
    *(["text"], [[[[0]]]], "../../../etc/passwd", "(((", 10**400),
)
_ROOTS = ("[]", "null", "3", '"text"', "{}", "[" * 50_000, '{"a":' * 50_000, "{'a': 1}", "\ufeff{}")


def mutants(path: Path, rng: random.Random, count: int, *, flips: bool = True) -> Iterator[Mutant]:
    """Yield a description of each mutant with the function that makes it in place of the file.

    Args:
        path: File to damage; put the whole one back before the next.
        rng: Source of the randomness.
        count: How many.
        flips: Whether bits may be flipped: where a file has no checksum and its bits are data, any value is right.
    """
    kinds = ["truncate", "empty", "remove", "folder", "text"]
    if path.suffix in (".json", ".jsonl"):
        kinds += ["root"] + ["value"] * 6 + ["key"] * 2
    if flips:
        kinds += ["flip"] * 4
    for number in range(count):
        # The first ones go through all kinds, so that a short campaign leaves none out over its files.
        kind = rng.choice(kinds) if number else kinds[rng.randrange(len(kinds))]
        yield _mutant(kind, path, random.Random(rng.random()))


def _mutant(kind: str, path: Path, rng: random.Random) -> Mutant:
    content = path.read_bytes()
    if kind == "truncate":
        length = rng.randrange(max(1, len(content)))
        return f"{path.name} cut to {length} bytes", lambda: _write(path, content[:length])
    if kind == "empty":
        return f"{path.name} emptied", lambda: _write(path, b"")
    if kind == "remove":
        return f"{path.name} removed", path.unlink
    if kind == "folder":
        return f"{path.name} a folder", lambda: (path.unlink(), path.mkdir())[0]
    if kind == "text":
        return f"{path.name} a text", lambda: _write(path, b"Not found. <html>404</html>\n")
    if kind == "flip":
        # Half of the flips in the head, where formats keep their structure.
        place = rng.randrange(min(len(content), 200) if rng.random() < 0.5 else len(content)) if content else 0
        bit = 1 << rng.randrange(8)
        flipped = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :] if content else b"\x01"
        return f"{path.name} byte {place} ^ {bit}", lambda: _write(path, flipped)
    if kind == "root":
        root = rng.choice(_ROOTS)
        return f"{path.name} is {root[:12]!r}", lambda: _write(path, root.encode())
    return _json_mutant(kind, path, content, rng)


def _json_mutant(kind: str, path: Path, content: bytes, rng: random.Random) -> Mutant:
    lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
    line = rng.randrange(len(lines))
    tree = json.loads(lines[line])
    places = list(_places(tree))
    if not places:
        return _mutant("root", path, rng)
    parent, key = rng.choice(places)
    name = f"{path.name} {key!r}"
    if kind == "key":
        value = parent.pop(key)
        if isinstance(parent, dict) and rng.random() < 0.3:
            parent[f"{key}_"] = value
            name += " renamed"
        else:
            name += " left out"
    else:
        parent[key] = rng.choice(_VALUES)
        name += f" = {str(parent[key])[:20]!r}"
    lines[line] = _dumped(tree)
    return name, lambda: _write(path, "\n".join(lines).encode())


def _dumped(tree: Any) -> str:
    # Python refuses to print integers of more than 4,300 digits; 10**400 is below.
    return json.dumps(tree)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Each value of a tree as its parent and its key there."""
    pairs = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


def _write(path: Path, content: bytes) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(content)
