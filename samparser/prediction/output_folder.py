"""The folder that a prediction is written to, and which files in it are an earlier prediction's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samparser._files import only_writer, remove_abandoned, replacing, write_text
from samparser._words import count, shortened

MANIFEST = "predicted.jsonl"


class OutputFolder:
    """A folder with `masks/`, `overlays/`, `masks.json`, and `predicted.jsonl`, which lists what was written.

    A file counts as the command's own while its content is what `predicted.jsonl` recorded, so masks that somebody
    has corrected by hand are no longer its own.

    Args:
        path: The folder; made when something is written.

    Raises:
        ValueError: It is a file, or one of its places is taken by something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.coco = self.path / "masks.json"
        for folder in (self.path, self.path / "masks", self.path / "overlays"):
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"{folder} is a file; name a folder to write to.")
        if self.coco.is_dir():
            raise ValueError(f"{self.coco} is a folder, where masks.json is to be written; name another folder.")
        self._own = self._read_manifest()

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
        if foreign and not overwrite:
            raise ValueError(
                f"{self.path} holds {count(len(foreign), 'file')} that this command did not write, or that changed "
                f"since, and would replace: {shortened(foreign, 3)}. Name another folder, or replace them with "
                "--overwrite (overwrite=True)."
            )
        return there

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who writes here inside the block, clear up after killed ones, and keep `predicted.jsonl`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with only_writer(self.path, "samparser predict") as alone:
            for folder in (self.path / "masks", self.path / "overlays"):
                remove_abandoned(folder, everything=alone)
            remove_abandoned(self.path, everything=alone, below=False)
            yield
            self._shorten_manifest()

    @contextmanager
    def replacing(self, file: Path) -> Iterator[Path]:
        """As `samparser._files.replacing`, for a file of this folder; it is noted as this command's own."""
        with replacing(file) as temporary:
            yield temporary
            # Noted before the file is there: killed in between, the next run knows the old content and the new.
            digest = _sha256(temporary)
            self._own.setdefault(self._name(file), set()).add(digest)
            with (self.path / MANIFEST).open("a", encoding="utf-8") as manifest:
                manifest.write(_line(self._name(file), digest))

    def _is_own(self, file: Path) -> bool:
        return file.is_file() and not file.is_symlink() and _sha256(file) in self._own.get(self._name(file), ())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _read_manifest(self) -> dict[str, set[str]]:
        own: dict[str, set[str]] = {}
        try:
            lines = (self.path / MANIFEST).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return own  # without it nothing counts as ours, so nothing is replaced unasked
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, RecursionError):  # the last line of a killed run may be torn
                entry = json.loads(line)
                own.setdefault(str(entry["file"]), set()).add(str(entry["sha256"]))
        return own

    def _shorten_manifest(self) -> None:
        """Keep one line for each file that is still as it was written."""
        lines = [_line(name, _sha256(self.path / name)) for name in sorted(self._own) if self._is_own(self.path / name)]
        write_text(self.path / MANIFEST, "".join(lines))


def _line(name: str, digest: str) -> str:
    return json.dumps({"file": name, "sha256": digest}) + "\n"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
