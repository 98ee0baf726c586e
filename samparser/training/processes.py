"""What the processes of one run agree on: where they are resumed, and that they all see the run folder."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from .run_folder import RunFolder, RunFolderError

# Network disks show another machine's new files late.
_SECONDS_TO_SEE = 60.0


def agreed(checkpoint: Path | None, folder: RunFolder) -> Path | None:
    """Return the checkpoint that the first process goes on from, in every process.

    Args:
        checkpoint: What the first process has chosen; of no meaning in the others.
        folder: The run folder, whose settings the first process has written.

    Raises:
        RunFolderError: The folder is not to be seen from here, so that this process would begin anew, or keep other
            weights at the end.
    """
    state = PartialState()
    if state.num_processes == 1:
        return checkpoint
    names = [None if checkpoint is None else checkpoint.name]
    broadcast_object_list(names)
    chosen = None if names[0] is None else folder.checkpoints / names[0]
    needed = folder.settings if chosen is None else chosen
    deadline = time.monotonic() + _SECONDS_TO_SEE
    while not needed.exists():
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"Process {state.process_index} of {state.num_processes}, on {socket.gethostname()}, does not see "
                f"{needed}, which the first process has. output_dir must lie on a disk that all machines share, under "
                "the same path."
            )
        time.sleep(0.5)
    return chosen
