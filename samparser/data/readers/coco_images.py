"""Where the images that a COCO file lists lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
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
        self._held: dict[str, frozenset[str]] = {}
        self._below: dict[str, frozenset[str]] = {}  # the chosen folder's folders, by what a name says of them
        self._alike: dict[str, dict[str, list[str]]] = {}
        self.moved: list[tuple[str, Path]] = []
        self.outside: list[Path] = []
        self.folder = next(self._candidates(names, folders), None)

    def _candidates(self, names: Sequence[str], folders: Sequence[Path]) -> Iterator[Path]:
        # Absolute names and those that lead out say nothing about the folder; they are the last resort.
        for folder in folders:
            if folder.is_dir() and any(self._has(str(folder / name)) for name in names if not _leads_out(name)):
                yield folder
        for folder in folders:
            if any(self._has(str(folder / name)) for name in names):
                yield folder
        for folder in folders:
            if any(self._similar(folder, name) for name in names):
                yield folder

    def find(self, name: str) -> Path | None:
        """Return the file of an image, or None; `moved` and `outside` get those that are not simply in the folder."""
        if self.folder is None:
            return None
        path = self.folder / name
        if not self._has(str(self.folder / name)):
            similar = self._similar(self.folder, name)
            if similar is not None:
                self.moved.append((name, similar))
            return similar
        if not is_plain(name) and relative_name(path, self.folder).startswith(".."):
            self.outside.append(path)
        return path

    def holds(self, name: str) -> bool:
        """Whether an image is in the folder simply as it is named, which costs less than to `find` it."""
        if self.folder is None or not is_plain(name):
            return False
        below, _, last = name.rpartition("/")
        if below not in self._below:
            self._below[below] = self._listing(str(self.folder / below))
        return last in self._below[below]

    def _similar(self, folder: Path, name: str) -> Path | None:
        parts = [part for part in re.split(r"[/\\]", unquote(name)) if part not in ("", ".", "..")]
        for start in range(len(parts)):
            path = folder.joinpath(*parts[start:])
            if self._has(str(path)):
                return path
            others = self._casefolded(str(path.parent)).get(path.name.casefold(), [])
            if len(others) == 1:
                return path.parent / others[0]
        return None

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._listing(folder)

    def _listing(self, folder: str) -> frozenset[str]:
        """List a folder, once: a call for each file is slow on network disks."""
        if folder not in self._held:
            self._held[folder] = frozenset()
            with suppress(OSError, ValueError):
                self._held[folder] = frozenset(os.listdir(folder or os.curdir))
        return self._held[folder]

    def _casefolded(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._alike:
            alike = self._alike[folder] = {}
            for name in self._listing(folder):
                alike.setdefault(name.casefold(), []).append(name)
        return self._alike[folder]


def is_plain(name: str) -> bool:
    """Whether a name leads into a folder and is written in the shortest way."""
    return not name.startswith("..") and not os.path.isabs(name) and os.path.normpath(name) == name


def relative_name(path: Path, root: Path) -> str:
    """Return a path relative to a folder that it need not lie in."""
    return Path(os.path.relpath(path, root)).as_posix()


def _leads_out(name: str) -> bool:
    return Path(name).is_absolute() or ".." in Path(name).parts
