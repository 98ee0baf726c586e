"""Files and folders that appear whole or not at all: the one writer of the library."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))
        if flush:
            flush_to_disk(temporary)
        os.replace(temporary, path)
        if flush:
            flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill, and move it to `path` when the block ends without an error.

    Raises:
        FileExistsError: `path` is there already and not an empty folder; nothing of it is touched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is there already and is not an empty folder; nothing was written over it.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def filling_folder(path: str | Path, *, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give a temporary folder to fill, and move its files into `path` when the block ends without an error.

    Other files of `path` stay. Each file is replaced whole; where `path` is new, all of them appear at once.

    Args:
        path: The folder to fill.
        last: Names of the files that tell what a folder is; they are moved after all others, in this order.
    """
    path = Path(path)
    if not path.exists():
        with replacing_folder(path) as temporary:
            yield temporary
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
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


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk (where the system can do that)."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
