"""Processes of this machine, with one thread each, as a launcher."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from samparser._extras import require

from .launcher import JobLost
from .tasks import Place, Task, do, opened
from .workspace import Workspace

# What a process is told when it starts, and what it opens with its first task: an error then has a task to belong to.
_place: Place | None = None
_workspace: Workspace | None = None


def _start_process(place: Place, one_thread: bool) -> None:
    global _place
    # Ctrl-C reaches all processes of a terminal; the one that started the others ends them, and only it speaks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Progress bars share a lock between processes, which one that is ended leaves behind; here nobody shares it.
    require("tqdm", "Training").tqdm.set_lock(threading.RLock())
    if one_thread:
        torch.set_num_threads(1)
    _place = place


def _work(task: Task, rates: dict[str, float]) -> dict[str, Any]:
    global _workspace
    assert _place is not None
    _workspace = _workspace or opened(_place, task)
    return do(_workspace, task, rates)


class PoolLauncher:
    """Starts tasks in processes of this machine.

    Args:
        place: What the processes open.
        processes: How many at once.
        one_thread: Give each process one thread instead of all.
    """

    tries = 1
    goes_on = False

    def __init__(self, place: Place, processes: int, *, one_thread: bool) -> None:
        self.at_once: int | None = processes
        self._pool = ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_process,
            initargs=(place, one_thread),
        )

    def start(self, task: Task, rates: dict[str, float]) -> Future[dict[str, Any]]:
        """Start a task in a process that is idle."""
        return self._pool.submit(_work, task, rates)

    def wait(self, jobs: Collection[Future[dict[str, Any]]]) -> Collection[Future[dict[str, Any]]]:
        """Return the tasks that have ended, once there is one."""
        return wait(jobs, return_when=FIRST_COMPLETED).done

    def result(self, job: Future[dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a task that has ended."""
        try:
            return job.result()
        except BrokenProcessPool as error:
            raise JobLost(
                "its process was ended from outside, which is how systems answer when memory runs out. Try fewer "
                "--processes."
            ) from error

    def stop(self) -> None:
        """End the running cells at once, where the program was stopped; what they wrote is whole or not there."""
        # `ProcessPoolExecutor.kill_workers` does this from Python 3.14 on. Not `terminate`: a cell in training answers
        # that in its own time, and then waits for good for a lock that one ended beside it took along.
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()

    def close(self) -> None:
        """End the processes, which are idle by now."""
        self._pool.shutdown(wait=True, cancel_futures=True)
