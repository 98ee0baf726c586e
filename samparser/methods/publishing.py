"""A trained part as others are to see it: the base model is named, not found on the disk of who trained it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .folder import METHOD_FILE, PEFT_CONFIG, read_json

# What a repository of the hub can be called: "name" or "owner/name".
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@contextmanager
def published_copy(folder: str | Path) -> Iterator[tuple[Path, str | None]]:
    """Give a copy of a folder with a trained part to upload, and a sentence on what was replaced in it.

    Where the base model is named by a path of this machine, `adapter_config.json`, `method.json` and the model card of
    the copy name it as the hub does, if the path is one of the hub's cache, and by the name of its folder otherwise.

    Raises:
        ValueError: A file of the folder is damaged.
    """
    folder = Path(folder)
    with tempfile.TemporaryDirectory(prefix="samparser-") as temporary:
        copy = Path(shutil.copytree(folder, Path(temporary) / folder.resolve().name))
        found = [file for name in (PEFT_CONFIG, METHOD_FILE) for file in sorted(copy.rglob(name))]
        # Read where they came from: a message has to name the file that can be mended.
        contents = {file: read_json(folder / file.relative_to(copy)) for file in found}
        bases = [
            content.get(field)
            for content in contents.values()
            if isinstance(content, dict)
            for field in ("base_model_name_or_path", "base_model")
        ]
        names = {base: public_name(base) for base in bases if isinstance(base, str) and public_name(base) != base}
        for file, content in contents.items():
            file.write_text(json.dumps(_replaced(content, names), indent=2) + "\n", encoding="utf-8")
        for card in copy.rglob("README.md"):
            text = card.read_text(encoding="utf-8")
            for path, name in sorted(names.items(), key=lambda item: -len(item[0])):
                text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w/.-])", name.replace("\\", "/"), text)
            card.write_text(text, encoding="utf-8")
        said = [
            f"the base model is named {name!r} there and not {path!r}, a path of this machine"
            for path, name in names.items()
        ]
        yield copy, "; ".join(said) or None


def public_name(base: str) -> str:
    """Return the name of a base model without where it lies on this machine.

    >>> public_name("facebook/sam-vit-base"), public_name("/home/me/models/small-sam")
    ('facebook/sam-vit-base', 'small-sam')
    >>> public_name("/home/me/.cache/huggingface/hub/models--facebook--sam-vit-base/snapshots/70c1")
    'facebook/sam-vit-base'
    """
    if _HUB_NAME.fullmatch(base):
        return base
    parts = (PureWindowsPath(base) if "\\" in base else PurePosixPath(base)).parts
    cached = next((part for part in parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/") if cached else parts[-1]


def _replaced(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, words) for item in value]
    return words.get(value, value) if isinstance(value, str) else value
