"""Which of the processes of one run says what went wrong: the first in which it does, and no other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

# The launcher's store answers at once, or it is gone with the machine that held it.
_PATIENCE = timedelta(seconds=5)


def together() -> int:
    """Return how many processes `accelerate launch` or `torchrun` started for this command."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks_first() -> bool:
    """Tell whether no other process of this run has said yet why it ends; the first to ask is told so, once.

    Where one process fails, the others lose their connections to it and are then ended by the launcher: what they would
    say is a consequence. The count is kept in the store by which the processes found each other.
    """
    if together() == 1:
        return True
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE
        )
        first: bool = store.add(f"samparser/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        # Better twice than never.
        return True
    return first


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
