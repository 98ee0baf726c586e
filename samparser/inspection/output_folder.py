"""The folder that an inspection is written to, and which of its files are an earlier inspection's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samparser._files import no_folder, write_text
from samparser._lock import locked
from samparser._words import count, shortened

RESULTS = "inspection.json"
_WRITER = "samparser inspect"


class InspectionFolder:
    """A folder with `inspection.json`, which names the files that were written with it by their SHA-256.

    A file whose content is no longer what was written counts as somebody else's, and is not replaced.

    Args:
        path: The folder; made when something is written.

    Raises:
        ValueError: It is a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if reason := no_folder(self.path):
            raise ValueError(f"{reason}; name a folder to write to.")
        self._own = self._read_own()
        self._written: list[Path] = []

    def check(self, names: Iterable[str], folders: Iterable[str] = ()) -> None:
        """Make sure, before the work begins, that nothing but an earlier inspection would be replaced.

        Args:
            names: The files that will be written.
            folders: Folders of adapters that will be written, with whatever is in them.

        Raises:
            ValueError: A file is there that this command did not write, or that has changed since.
        """
        places = [self.path / name for name in names]
        for name in folders:
            folder = self.path / name
            places += [folder] if not folder.is_dir() else [file for file in folder.rglob("*") if not file.is_dir()]
        there = [place for place in (*places, self.path / RESULTS) if place.exists() or place.is_symlink()]
        foreign = [place for place in there if not self._is_own(place)]
        if foreign:
            raise ValueError(
                f"{self.path} holds {count(len(foreign), 'file')} that this command did not write, or that changed "
                f"since, and would replace: {shortened(foreign, 3)}. Name another folder, or move them away."
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, and be the only one who writes here inside the block.

        Raises:
            FolderLocked: Another process writes there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            yield

    def add(self, path: Path) -> Path:
        """Note a file, or a folder with all of its files, as written here, at once: a killed run may be done again."""
        self._written += [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        self.finish({"unfinished": True})
        return path

    def finish(self, results: dict[str, Any]) -> Path:
        """Write `inspection.json`: the results, and which files were written, those of earlier inspections too."""
        own = {self.path / name for name in self._own if self._is_own(self.path / name)}
        files = {path.relative_to(self.path).as_posix(): _sha256(path) for path in sorted({*own, *self._written})}
        text = json.dumps({"written_by": _WRITER, **results, "files": files}, indent=1, allow_nan=False)
        write_text(self.path / RESULTS, text + "\n")
        return self.path / RESULTS

    def _is_own(self, file: Path) -> bool:
        if file.is_symlink() or not file.is_file():
            return False
        if file == self.path / RESULTS:
            return self._own is not _NOTHING
        return self._own.get(file.relative_to(self.path).as_posix()) == _sha256(file)

    def _read_own(self) -> dict[str, str]:
        """Read what was written here, by name; without it nothing counts as ours."""
        try:
            content = json.loads((self.path / RESULTS).read_text(encoding="utf-8"))
            if content["written_by"] != _WRITER:
                return _NOTHING
            return {str(name): str(digest) for name, digest in content["files"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return _NOTHING


_NOTHING: dict[str, str] = {}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
