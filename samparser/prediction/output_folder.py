"""The folder that a prediction is written to, and which files in it are an earlier prediction's own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samparser._files import no_folder, remove_abandoned, replacing
from samparser._lock import locked
from samparser._words import count, shortened

_JOURNAL = ".predicted.jsonl"
_SIGNATURE = b',\n"info": '


class OutputFolder:
    """A folder with `masks/`, `overlays/` and `masks.json`, which says in its `info` which files were written.

    A file counts as the command's own while its content is what was written, by its SHA-256, so masks that somebody
    has corrected by hand are no longer its own. What a run writes before its `masks.json` is there stands in a hidden
    journal, so that a killed run can be done again.

    Args:
        path: The folder; made when something is written.

    Raises:
        ValueError: It is a file, or one of its places is taken by something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.coco = self.path / "masks.json"
        for folder in (self.path, self.path / "masks", self.path / "overlays"):
            if reason := no_folder(folder):
                raise ValueError(f"{reason}; remove it, or name another folder to write to.")
        self._own = self._read_own()

    def label_path(self, name: str) -> Path:
        """Return where the label PNG of an image goes, by its NAME."""
        return self.path / "masks" / Path(name).with_suffix(".png")

    def overlay_path(self, name: str) -> Path:
        """Return where the overlay of an image goes, by its NAME."""
        return self.path / "overlays" / Path(name).with_suffix(".png")

    def check(self, names: Iterable[str], *, overwrite: bool) -> list[Path]:
        """Make sure that nothing but an earlier prediction would be replaced by the masks of these images.

        Returns:
            The files that will be replaced.

        Raises:
            ValueError: A file is there that this command did not write, or that has changed since.
        """
        places = [place for name in names for place in (self.label_path(name), self.overlay_path(name))]
        there = [place for place in (*places, self.coco) if place.exists() or place.is_symlink()]
        foreign = [place for place in there if not self._is_own(place)]
        if folders := [place for place in there if place.is_dir()]:
            raise ValueError(f"{folders[0]} is a folder, where a file is to be written; name another folder.")
        if foreign and not overwrite:
            raise ValueError(
                f"{self.path} holds {count(len(foreign), 'file')} that this command did not write, or that changed "
                f"since, and would replace: {shortened(foreign, 3)}. Name another folder, or replace them with "
                "--overwrite (overwrite=True)."
            )
        return there

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes here inside the block, and clear up after those that were killed."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path) as alone:
            for folder in (self.path / "masks", self.path / "overlays"):
                remove_abandoned(folder, everything=alone)
            remove_abandoned(self.path, everything=alone, below=False)
            yield
            (self.path / _JOURNAL).unlink(missing_ok=True)

    @contextmanager
    def replacing(self, file: Path) -> Iterator[Path]:
        """As `samparser._files.replacing`, for a PNG of this folder; it is noted as this command's own."""
        with replacing(file) as temporary:
            yield temporary
            # Noted before the file is there: killed in between, the next run knows the old content and the new.
            name, digest = self._name(file), _sha256(temporary)
            self._own.setdefault(name, set()).add(digest)
            with (self.path / _JOURNAL).open("a", encoding="utf-8") as journal:
                journal.write(json.dumps({name: digest}) + "\n")

    @contextmanager
    def replacing_coco(self) -> Iterator[Path]:
        """As `replacing`, for `masks.json`; what was written here is added to it as its last entry, `info`."""
        with replacing(self.coco) as temporary:
            yield temporary
            own = (self.path / name for name in sorted(self._own))
            files = {self._name(file): _sha256(file) for file in own if self._is_own(file)}
            with temporary.open("r+b") as file:
                file.seek(-len(b"}\n"), os.SEEK_END)
                file.truncate()
                file.flush()
                info = {"description": "Written by `samparser predict`", "sha256": _sha256(temporary), "files": files}
                file.write(_SIGNATURE + json.dumps(info).encode() + b"}\n")

    def _is_own(self, file: Path) -> bool:
        if file.is_symlink() or not file.is_file():
            return False
        return _signed(file) is not None if file == self.coco else _sha256(file) in self._own.get(self._name(file), ())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _read_own(self) -> dict[str, set[str]]:
        """Read what was written here, by name; without it nothing counts as ours, so nothing is replaced unasked."""
        own = {name: {digest} for name, digest in (_signed(self.coco) or {}).items()}
        with suppress(OSError, UnicodeDecodeError):
            for line in (self.path / _JOURNAL).read_text(encoding="utf-8").splitlines():
                # The last line of a killed run may be torn.
                with suppress(ValueError, AttributeError, TypeError, RecursionError):
                    for name, digest in json.loads(line).items():
                        own.setdefault(name, set()).add(digest)
        return own


def _signed(coco: Path) -> dict[str, str] | None:
    """Return the files that a `masks.json` names as written with it; None where it is not as it was written."""
    try:
        content = coco.read_bytes()
        end = content.rindex(_SIGNATURE)
        info = json.loads(content[end + len(_SIGNATURE) : content.rindex(b"}")])
        whole = info["sha256"] == hashlib.sha256(memoryview(content)[:end]).hexdigest()
        return {str(name): str(digest) for name, digest in info["files"].items()} if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
