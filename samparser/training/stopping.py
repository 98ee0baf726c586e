"""Stopping a run: Ctrl-C and SIGTERM end it with one sentence that says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run was stopped from outside and can be resumed.

    Attributes:
        number: The signal, `signal.SIGINT` for Ctrl-C.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM within the block into `Stopped`, after everything in the block has cleaned up.

    Python hands signals to the main thread only; in another one SIGTERM keeps its meaning.

    Args:
        folder: The run folder, for the message.

    Raises:
        Stopped: The run was stopped.
    """
    # A handler that the program has set, for instance to save more than this run, goes first.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt as interrupt:
        number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
        raise Stopped(
            f"Training was stopped ({signal.Signals(number).name}). The same command with --resume goes on from the "
            f"last checkpoint in {folder}.",
            number,
        ) from None
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
