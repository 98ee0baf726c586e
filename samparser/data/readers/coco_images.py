"""Where the images that a COCO file lists lie."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote


class ImageFiles:
    """Where the images of a COCO file lie: below the first folder that holds one of them.

    Exporters write the names of their own machine: "images\\a.png", "../../media/4/a.png", "my%20pic.png", "a.jpg" for
    a.JPG. An image that is not there as written is looked for by the longest end of its name that is.

    Args:
        names: As the file has them.
        folders: To look in.
    """

    def __init__(self, names: Sequence[str], folders: Sequence[Path]) -> None:
        self._held: dict[Path, dict[str, list[str]]] = {}
        self.moved: list[tuple[str, Path]] = []
        self.outside: list[Path] = []
        # Absolute names and those that lead out say nothing about the folder; they are the last resort.
        inside = [name for name in names if not (Path(name).is_absolute() or ".." in Path(name).parts)]
        tries = (
            (folder for folder in folders if any(self._has(folder / name) for name in inside)),
            (folder for folder in folders if any(self._has(folder / name) for name in names)),
            (folder for folder in folders if any(self._similar(folder, name) for name in names)),
        )
        self.folder = next((folder for found in tries for folder in found), None)

    def find(self, name: str) -> Path | None:
        """Return the file of an image, or None; `moved` and `outside` get those that are not simply in the folder."""
        if self.folder is None:
            return None
        path: Path | None = self.folder / name
        if path is None or not self._has(path):
            path = self._similar(self.folder, name)
            if path is not None:
                self.moved.append((name, path))
        elif relative_name(path, self.folder).startswith(".."):
            self.outside.append(path)
        return path

    def _similar(self, folder: Path, name: str) -> Path | None:
        parts = [part for part in re.split(r"[/\\]", unquote(name)) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            path = folder.joinpath(*parts[start:])
            if self._has(path):
                return path
            others = self._listing(path.parent).get(path.name.casefold(), [])
            if len(others) == 1:
                return path.parent / others[0]
        return None

    def _has(self, path: Path) -> bool:
        return path.name in self._listing(path.parent).get(path.name.casefold(), ())

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        """List a folder, once: a call for each file is slow on network disks."""
        if folder not in self._held:
            held = self._held[folder] = {}
            with suppress(OSError, ValueError):
                for name in os.listdir(folder):
                    held.setdefault(name.casefold(), []).append(name)
        return self._held[folder]


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to a folder that it need not lie in."""
    return Path(os.path.relpath(path, root)).as_posix()
