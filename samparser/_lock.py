"""Lock of a run folder: one process writes it at a time, and the lock of a dead process holds nobody up."""

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


class FolderLocked(Exception):  # noqa: N818
    """Another run holds the folder; the message says which process."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process until the block ends.

    The system gives the lock back when the process dies, however it dies.

    Raises:
        FolderLocked: Another process, or another thread of this one, holds it.
    """
    path = folder / LOCK
    key = str(path.resolve())
    if key in _held:
        raise FolderLocked(f"another run in this process (pid {os.getpid()})")
    _held.add(key)
    handle = None
    try:
        handle = _acquired(path)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)
        yield
    finally:
        _held.discard(key)
        if handle is not None:
            with suppress(OSError):
                path.unlink()
            os.close(handle)


def _acquired(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle
            who = _holder(path)
            os.close(handle)
            if error.errno in _HELD_BY_ANOTHER:
                raise FolderLocked(who) from error
            raise
        # Whoever held it before may have deleted the file between the two calls.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        about = read_json(path)
        return f"another process (pid {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
