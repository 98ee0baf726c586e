"""Files and folders that appear whole or not at all: the one writer of the library."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


@contextmanager
def replacing(path: str | Path, *, flush: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and move it to `path` when the block ends without an error.

    Other processes see the old file or the new one. After an error the old file is as it was and nothing is left over.
    The temporary name is random and created exclusively, so a link planted under it is never written through; it is
    hidden and keeps the suffix, because image writers choose the format by it. Missing folders are made. The
    permissions are those of the old file, or of any new file in this process; safetensors alone would write files that
    nobody else can read.

    Args:
        path: Where the file is to stand.
        flush: Also wait until the content is on the disk, for files that mark others as complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = (path if path.exists() else temporary).stat().st_mode
        with _naming_a_full_disk(path):
            yield temporary
        temporary.chmod(stat.S_IMODE(mode))
        if flush:
            flush_to_disk(temporary)
        os.replace(temporary, path)
        if flush:
            flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def no_folder(path: str | Path) -> str | None:
    """Say why a path can be no folder, as the start of a sentence; None where it is one or can become one."""
    path = Path(path)
    there = next(place for place in (path, *path.parents, Path()) if place.is_symlink() or place.exists())
    if there.is_dir():
        return None
    return f"{there} is {'a file' if there.exists() else 'a link to what is not there'}"


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and move it to `path` when the block ends without an error.

    Its files get the permissions of any new file in this process. A link to an empty folder stays; the folder that it
    leads to is filled.

    Raises:
        FileExistsError: `path` is there already and not an empty folder; nothing of it is touched.
        NotADirectoryError: `path` is a link to what is not there.
        OSError: The disk is full.
    """
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and is not an empty folder; nothing was written over it.")
    temporary = _new_beside(path)
    try:
        with _naming_a_full_disk(path):
            yield temporary
        _set_usual_permissions(temporary, path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def filling_folder(path: str | Path, *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give a temporary folder to fill, and move its files into `path` when the block ends without an error.

    Other files of `path` stay. Each file is replaced whole; where `path` is new, all of them appear at once. Where it
    is a link, the folder that it leads to is filled.

    Args:
        path: The folder to fill.
        last: Names of the files that tell what a folder is; they are moved after all others, in this order.

    Raises:
        NotADirectoryError: `path` is a file, or a link to what is not there.
        OSError: The disk is full.
    """
    path = _followed(path)
    if not path.exists():
        with replacing_folder(path) as temporary:
            yield temporary
        return
    temporary = _new_beside(path)
    try:
        with _naming_a_full_disk(path):
            yield temporary
        _set_usual_permissions(temporary, path)
        names = sorted(file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file())
        for name in sorted(names, key=lambda name: last.index(str(name)) if str(name) in last else -1):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / name, path / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str, *, flush: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path, flush=flush) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _followed(path: str | Path) -> Path:
    """Follow a link, perhaps to another disk: what is to be moved into a folder has to be made beside it."""
    path = Path(path)
    if path.is_symlink():
        if reason := no_folder(path):
            raise NotADirectoryError(f"{reason}; remove it, or name another folder.")
        return path.resolve()
    return path


def _new_beside(path: Path) -> Path:
    """Make a temporary folder beside a path, and delete those of it that killed processes left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.partial"):
        if not left.is_symlink() and time.time() - left.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    return temporary


def _set_usual_permissions(folder: Path, replaced: Path) -> None:
    """Give files the permissions of those they replace, or of any new file; safetensors lets nobody else read its."""
    probe = folder / f".{uuid.uuid4().hex}"
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    usual = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            old = replaced / file.relative_to(folder)
            file.chmod(stat.S_IMODE(old.stat().st_mode if old.is_file() else usual))


@contextmanager
def _naming_a_full_disk(path: Path) -> Iterator[None]:
    """Say which file or folder it was when the disk is full; safetensors and torch raise errors of their own then."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in ("No space left on device", "PytorchStreamWriter")):
            raise
        raise OSError(
            errno.ENOSPC, f"There is no space left to write it; what was there before is as it was ({error})", str(path)
        ) from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk (where the system can do that)."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp(\..*)?")
_ABANDONED_AFTER = 3600.0


def remove_abandoned(folder: str | Path, *, everything: bool = False, below: bool = True) -> None:
    """Delete the temporary files of `replacing` that killed processes left in a folder.

    Args:
        folder: The folder; nothing happens where there is none.
        everything: Also those younger than an hour: only for who knows that nobody writes there now.
        below: Also look into the folders within.
    """
    for path in Path(folder).glob("**/.*" if below else ".*"):
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        if everything or time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
            path.unlink(missing_ok=True)


class AdapterSource(NamedTuple):
    """Where a saved adapter lies: a folder, or a repository on the Hub with the arguments it is downloaded with."""

    name: str
    subfolder: str | None
    download: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder, which does not exist where the name is one on the Hub."""
        return Path(self.name, self.subfolder or "")


def add_to_card(card: Path, line: str, *, where: str, unless: str) -> None:
    """Put a line at the end of a model card that has the words `where` and not yet those of `unless`."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if where in text and unless not in text:
        with replacing(card) as temporary:
            temporary.write_text(f"{text.rstrip()}\n\n{line}\n", encoding="utf-8", newline="\n")
