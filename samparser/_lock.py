"""Lock of an output folder: one process writes it at a time, and the lock of a dead process holds nobody up."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from samparser._untrusted import read_json

try:
    import fcntl
except ImportError:  # Windows, where folders go unlocked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES)
# Some network drives know no locks; a run there goes without one.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# The system's lock is the process's: a second thread of it would get it too.
_held: set[str] = set()


class FolderLocked(BlockingIOError):  # noqa: N818
    """Another run holds the folder; the message says which process, and what to do."""

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(
            f"{folder} is being written by {holder}. Wait for it or stop it, or choose another output folder."
        )


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[bool]:
    """Hold a folder for this process until the block ends; its file `.lock` says which process that is.

    The system gives the lock back when the process dies, however it dies.

    Args:
        folder: An existing folder.
        name: Of the lock's file; other names hold other things in the same folder.

    Yields:
        Whether no other process can be writing. Windows, and some network drives, have no locks.

    Raises:
        FolderLocked: Another process, or another thread of this one, holds it.
        OSError: The folder cannot be written to.
    """
    path = folder / name
    key = str(path.resolve())
    if key in _held:
        raise FolderLocked(folder, f"another run in this process (pid {os.getpid()})")
    _held.add(key)
    handle = None
    try:
        handle, alone = _acquired(path)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
        yield alone
    finally:
        _held.discard(key)
        if handle is not None:
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquired(path: Path) -> tuple[int, bool]:
    """Open the file and lock it, where there are locks."""
    while True:
        # Through a link, a file elsewhere would be emptied.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            who = _holder(path)
            os.close(handle)
            if error.errno in _HELD_BY_ANOTHER:
                raise FolderLocked(path.parent, who) from error
            raise
        # Whoever held it before may have deleted the file between the two calls.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle, fcntl is not None
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        about = read_json(path)
        return f"another process (pid {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
