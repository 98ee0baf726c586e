"""Processes that read a data set side by side; what they find comes back in the order of the images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

from tqdm import TMonitor

from samparser.data.dataset import SegmentationDataset
from samparser.data.sample import DataWarning

from .finding import Finding, find

_WORTH = 250  # images: about a second of reading, which a further process should save at least
_MOST_IN_A_TASK = 16  # images, so that the answers come soon and are few
_TASKS = 3  # that wait for each process: enough that none of them waits, and a bound on what is in memory

Datasets = Mapping[str, SegmentationDataset]
Task = tuple[str, range]  # a split and places in it
Warned = tuple[str, type[Warning], str, int]  # text, category, file and line


def findings(datasets: Datasets, processes: int | None) -> Generator[Finding, None, None]:
    """Yield what is found in each image, split by split, in order.

    Args:
        datasets: What to read, by split.
        processes: How many processes read; None takes one for every 250 images and at most one a core.

    Raises:
        RuntimeError: A process was ended from outside.
    """
    images = sum(len(dataset) for dataset in datasets.values())
    if processes is None:
        processes = max(1, min(_cores(), images // _WORTH))
    processes = min(processes, images)
    if processes == 1:
        yield from (find(part, dataset, index) for part, dataset in datasets.items() for index in range(len(dataset)))
        return
    context = _context()
    stopped = context.RawValue("b", 0)  # without a lock, which a process that is killed could take along
    pool = ProcessPoolExecutor(processes, context, _start, (datasets, stopped))
    try:
        yield from _in_order(pool, datasets, processes, max(1, min(_MOST_IN_A_TASK, images // (4 * processes))))
    finally:
        stopped.value = 1
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, datasets: Datasets, processes: int, size: int) -> Iterator[Finding]:
    tasks = _tasks(datasets, size)
    waiting: deque[tuple[Task, Future[tuple[list[Finding], list[Warned]]]]] = deque()
    while True:
        try:
            waiting.extend(
                (task, pool.submit(_work, task)) for task in islice(tasks, _TASKS * processes - len(waiting))
            )
            if not waiting:
                return
            found, warned = waiting[0][1].result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"One of the {processes} processes that read was ended from outside or crashed, "
                f"{_somewhere(waiting, datasets)}. Systems end processes where memory runs out: set fewer processes. "
                f"If one alone ends as well, an image there crashes its decoder."
            ) from error
        waiting.popleft()
        for text, category, file, line in warned:
            warnings.warn_explicit(text, category, file, line)
        yield from found


def _tasks(datasets: Datasets, size: int) -> Iterator[Task]:
    for part, dataset in datasets.items():
        for start in range(0, len(dataset), size):
            yield part, range(start, min(start + size, len(dataset)))


def _somewhere(waiting: deque[tuple[Task, Any]], datasets: Datasets) -> str:
    """Say which images were in work, as far as that is known."""
    if not waiting:
        return "before the first image"
    (first_part, first), (last_part, last) = waiting[0][0], waiting[-1][0]
    return f"between {datasets[first_part].names[first[0]]} and {datasets[last_part].names[last[-1]]}"


_datasets: Datasets = {}
_stopped: Any = None


def _start(datasets: Datasets, stopped: Any) -> None:
    """Prepare a process: it leaves Ctrl-C to the first one, and ends when that one does, however it ends."""
    global _datasets, _stopped
    _datasets, _stopped = datasets, stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Task) -> tuple[list[Finding], list[Warned]]:
    """Read some images. What reading warns of goes to the first process, each text once."""
    part, places = task
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        found = [find(part, _datasets[part], index) for index in places if not _stopped.value]
    warned = dict.fromkeys((str(one.message), one.category, one.filename, one.lineno) for one in caught)
    return found, list(warned)


def _context() -> multiprocessing.context.BaseContext:
    """Fork where that is safe, as it needs no second import of everything and copies no memory.

    That is where no other thread can hold a lock that a child then waits for; the one of progress bars does not matter.
    """
    others = [thread for thread in threading.enumerate() if not isinstance(thread, TMonitor)]
    alone = sys.platform == "linux" and len(others) == 1
    return multiprocessing.get_context("fork" if alone else "spawn")


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
