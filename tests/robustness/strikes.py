"""Strikes: what goes wrong at the n-th file operation of a process, and the limits that it runs under.

An audit hook sees every file that Python opens to write, moves, makes or removes. torch and safetensors write with code
of their own, which Python does not see; the two functions that all their writing goes through are wrapped.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Where the paths and the folder handles stand among the arguments of an audit event.
_CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
_SPACE = ("open", "os.mkdir", "os.link", "os.symlink", "torch.save", "safetensors")


class Strike:
    """Counts the changes below a folder and acts from the n-th on.

    Args:
        folder: Changes below it count, those elsewhere do not.
        kind: "count" only counts; "kill" ends the process before the n-th change; "tear" does so and leaves half of
            what was written last, a file or what was appended to it; "term" and "interrupt" send the signal of `kill`
            and of Ctrl-C; "full" refuses whatever needs space from the n-th change on, and "denied" every change.
        at: n, from 0.
    """

    def __init__(self, folder: str, kind: str, at: int) -> None:
        self.folder, self.kind, self.at = os.path.realpath(folder), kind, at
        self.count = 0
        self.last: str | None = None
        self._before = 0
        self._own = False

    def install(self) -> None:
        """Watch this process from here on."""
        import safetensors.torch
        import torch

        sys.addaudithook(self._hook)
        torch.save = self._wrapped(torch.save, "torch.save", 1)
        safetensors.torch.serialize_file = self._wrapped(safetensors.torch.serialize_file, "safetensors", 1)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._own or (event != "open" and event not in _CHANGES):
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITES)
            paths = [_resolved(path, None)] if writes else []
        else:
            paths = [
                _resolved(
                    arguments[path], arguments[handle] if handle is not None and handle < len(arguments) else None
                )
                for path, handle in _CHANGES[event]
            ]
        for path in paths:
            if path is not None and (path == self.folder or path.startswith(self.folder + os.sep)):
                self._change(event, path)
                if event == "open":
                    appends = "a" in mode if isinstance(mode, str) else bool((flags or 0) & os.O_APPEND)
                    self._written(path, os.path.getsize(path) if appends and os.path.isfile(path) else 0)
                return

    def _written(self, path: str, before: int) -> None:
        """Note what was written last: a file from byte `before` on; a kill tears nothing that was whole before."""
        self.last, self._before = path, before

    def _wrapped(self, function: Any, event: str, position: int) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            target = options.get(
                "f", options.get("filename", arguments[position] if len(arguments) > position else None)
            )
            if not isinstance(target, str | os.PathLike) or _resolved(target, None) is None:
                return function(*arguments, **options)
            path = str(_resolved(target, None))
            if not path.startswith(self.folder + os.sep):
                return function(*arguments, **options)
            self._change(event, path)
            result = function(*arguments, **options)
            self._written(path, 0)
            # Once more behind it, where the file is written and not yet moved: a place to tear it.
            self._change(event, path)
            return result

        return wrapped

    def _change(self, event: str, path: str) -> None:
        number, self.count = self.count, self.count + 1
        if self.kind == "denied":
            raise _refusal(event, errno.EACCES, path)
        if self.kind == "count" or number < self.at:
            return
        if self.kind == "full":
            if event in _SPACE:
                raise _refusal(event, errno.ENOSPC, path)
            return
        if number > self.at:
            return
        if self.kind in ("kill", "tear"):
            if self.kind == "tear" and self.last is not None and os.path.isfile(self.last):
                self._own = True
                os.truncate(self.last, (self._before + os.path.getsize(self.last)) // 2)
            os._exit(128 + signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGINT if self.kind == "interrupt" else signal.SIGTERM)


def _resolved(path: Any, handle: Any) -> str | None:
    if isinstance(path, int) or path is None:
        return None
    path = os.fsdecode(path)
    if isinstance(handle, int) and handle >= 0 and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), path)
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def _refusal(event: str, number: int, path: str) -> Exception:
    """The error that the writer of this event raises; torch and safetensors have words of their own."""
    if event == "torch.save":
        return RuntimeError(
            f"[enforce fail at inline_container.cc:860] . PytorchStreamWriter failed writing file {path}"
        )
    if event == "safetensors":
        from safetensors import SafetensorError

        return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    return OSError(number, os.strerror(number), path)


def limit(file_bytes: int | None, memory_bytes: int) -> None:
    """Bound the size of any file that this process writes, and the memory that it takes above what it has."""
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
