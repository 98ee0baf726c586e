"""Which of the processes of one run says what went wrong: the first in which it does, and no other."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

# The launcher's store answers at once, or it is gone with the machine that held it.
_PATIENCE = timedelta(seconds=5)


def together() -> int:
    """Return how many processes `accelerate launch` or `torchrun` started for this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def say(text: str) -> None:
    """Print to the standard error why this run ends, unless another process of it has begun to.

    Where one process fails, the others lose their connections to it and are then ended by the launcher: what they would
    say is a consequence. The count is kept in the store by which the processes found each other. Those that stay silent
    wait until the first has spoken, as a launcher ends all when the first of its processes has ended.
    """
    if together() == 1:
        print(text, file=sys.stderr)
        return
    attempt = f"samparser/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
        )
        first = store.add(f"{attempt}/ended", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        # Better twice than never.
        print(text, file=sys.stderr)
        return
    with suppress(RuntimeError):  # the store is gone, or the first was ended from outside
        if first:
            print(text, file=sys.stderr, flush=True)
            store.set(f"{attempt}/said", "yes")
        else:
            store.wait([f"{attempt}/said"], _PATIENCE)


def who() -> str:
    """Return which process this is, as a line to put below a message; empty where there is one only."""
    if together() == 1:
        return ""
    return f"\n(process {os.environ.get('RANK', '?')} of {together()}, on {socket.gethostname()}; it ends the others)"


def lost_another(error: BaseException) -> bool:
    """Tell whether an error says that the connection to another process of the run has broken."""
    if together() == 1:
        return False
    text = str(error)
    broken = "gloo" in text and ("losed by peer" in text or "reset by peer" in text or "roken pipe" in text)
    return broken or isinstance(error, dist.DistNetworkError)
