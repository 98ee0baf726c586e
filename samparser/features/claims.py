"""Claims on parts of a work that processes on several machines share out among themselves through a folder.

A claim is a file that is created exclusively, which every file system can do, network drives too; there are no locks.
Claims save work and guard nothing: where one is taken over wrongly, the same entry is written twice, whole each time.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from samparser._untrusted import read_json

_BEAT = 10.0  # seconds between two signs of life
_PATIENCE = 120.0  # seconds without one; network drives may show them a minute late


class Claims:
    """The claims of this process in a folder, held inside a `with` block.

    Holders touch their files every ten seconds. A claim is abandoned when its process is not there any more, where that
    is a process of this machine, or when its file did not change for two minutes of this process's own clock, so that
    clocks of several machines need not agree.

    Args:
        folder: Where they are; made when needed, and deleted with the last claim.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: set[Path] = set()
        self._signs: dict[Path, tuple[int, float]] = {}
        self._done = threading.Event()
        self._showing: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        for path in list(self._held):
            self.release(path.name)
        with suppress(OSError):
            self._folder.rmdir()

    def take(self, name: str) -> bool:
        """Claim a part, and return whether it is this process's now."""
        path = self._folder / name
        if self._abandoned(path):
            self._signs.pop(path, None)
            path.unlink(missing_ok=True)
        try:
            # Another process may just have deleted the folder with its last claim.
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (FileExistsError, FileNotFoundError):
            return False
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        self._held.add(path)
        if self._showing is None:  # not before the first claim, so that workers are forked without another thread
            self._showing = threading.Thread(target=self._show_life, daemon=True)
            self._showing.start()
        return True

    def release(self, name: str) -> None:
        """Give a part back."""
        self._held.discard(self._folder / name)
        (self._folder / name).unlink(missing_ok=True)

    def wait(self, names: Collection[str]) -> None:
        """Wait until one of these parts can be claimed."""
        pause = 0.05
        while all((self._folder / name).exists() and not self._abandoned(self._folder / name) for name in names):
            time.sleep(pause)
            pause = min(2.0, 1.5 * pause)

    def _abandoned(self, path: Path) -> bool:
        try:
            changed = path.stat().st_mtime_ns
            about = read_json(path)
            if about["host"] == socket.gethostname() and not _runs(int(about["pid"])):
                return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            pass  # it is being written
        last, since = self._signs.get(path, (None, 0.0))
        if changed != last:
            self._signs[path] = (changed, time.monotonic())
            return False
        return time.monotonic() - since > _PATIENCE

    def _show_life(self) -> None:
        while not self._done.wait(_BEAT):
            for path in list(self._held):
                with suppress(OSError):
                    os.utime(path)


def _runs(pid: int) -> bool:
    """Return whether a process of this machine runs; where that cannot be asked, that it does."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
