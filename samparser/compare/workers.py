"""Runs cells one after another in this process, or several at once in processes of one thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from samparser._extras import require

from .cell import run_cell
from .experiment import Experiment
from .plan import Cell
from .plugins import import_files
from .step_cost import measure_cost
from .workspace import Workspace

# What a worker is told when it starts, and what it opens with its first task: an error then has a task to belong to.
_place: Any = ()
_workspace: Workspace | None = None

Task = Cell | str  # a cell, or the name of a row whose cost is measured


class CellError(RuntimeError):
    """A cell failed; the message names it, its log, and what it said."""


def _start_worker(experiment: Experiment, root: Path, output: Path, limit: int | None, one_thread: bool) -> None:
    global _place
    # Ctrl-C reaches all processes of a terminal; the one that started the others ends them, and only it speaks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Progress bars share a lock between processes, which one that is ended leaves behind; here nobody shares it.
    require("tqdm", "Training").tqdm.set_lock(threading.RLock())
    if one_thread:
        torch.set_num_threads(1)
    _place = (experiment, root, output, limit)


def _work(task: Task, rates: dict[str, float]) -> dict[str, Any]:
    global _workspace
    if _workspace is None:
        experiment, *rest = _place
        try:
            import_files([experiment.file.parent / name for name in experiment.imports])
            _workspace = Workspace(experiment, *rest)
        except (Exception, SystemExit) as error:
            raise CellError(f"{_title(task)} failed: {type(error).__name__}: {error}") from error
    return do(_workspace, task, rates)


def do(workspace: Workspace, task: Task, rates: dict[str, float]) -> dict[str, Any]:
    """Run one task; its progress bars and warnings go to a log file.

    Raises:
        CellError: It failed.
    """
    name = f"cost--{task}" if isinstance(task, str) else task.name
    log = workspace.output / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            log.open("a", encoding="utf-8") as file,
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
        ):
            if isinstance(task, str):
                return measure_cost(workspace, workspace.experiment.row(task))
            return run_cell(workspace, task, rates)
    except (Exception, SystemExit) as error:
        # Errors of other packages cannot always be carried from one process to another; their text can.
        raise CellError(
            f"{_title(task)} failed: {type(error).__name__}: {error}\nIts log is {log}. What is finished is kept; "
            "the same command goes on from there."
        ) from error


def _title(task: Task) -> str:
    return f"the cost of {task}" if isinstance(task, str) else str(task)


def _result(task: Task, future: Future[dict[str, Any]]) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise CellError(
            f"{_title(task)} failed: its process was ended from outside, which is how systems answer when memory "
            "runs out. Try fewer --processes. What is finished is kept; the same command goes on from there."
        ) from error


class Workers:
    """Runs tasks and gives their results in the order in which they finish.

    Args:
        workspace: Model and data.
        processes: How many at once. 1: in this process, with its threads; more: in processes of one thread each.
    """

    def __init__(self, workspace: Workspace, processes: int) -> None:
        self.workspace, self.processes = workspace, processes
        self._waiting: list[tuple[Task, dict[str, float]]] = []
        self._running: dict[Future[dict[str, Any]], Task] = {}
        self._pool: ProcessPoolExecutor | None = None

    def add(self, task: Task, rates: Mapping[str, float] | None = None) -> None:
        """Put a task at the end of the line; allowed while `results` is being read."""
        self._waiting.append((task, dict(rates or {})))

    def results(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Run everything that was added, and what is added meanwhile.

        Raises:
            CellError: A task failed. No other is started; those that run at the same time give their results first.
        """
        # Costs first, one at a time and each in a fresh process: neighbours would disturb times and peaks of memory.
        for row in [task for task, _ in self._waiting if isinstance(task, str)]:
            yield row, self._alone(row)
        self._waiting = [(task, rates) for task, rates in self._waiting if not isinstance(task, str)]
        while self.processes == 1 and self._waiting:
            task, rates = self._waiting.pop(0)
            yield task, do(self.workspace, task, rates)
        failed: CellError | None = None
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self.processes:
                    task, rates = self._waiting.pop(0)
                    self._running[self._executor().submit(_work, task, rates)] = task
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = self._running.pop(future)
                    try:
                        result = _result(task, future)
                    except CellError as error:
                        failed = failed or error
                        continue
                    yield task, result
                if failed is not None:
                    # Also what was added on account of results that came after the failure.
                    self._waiting.clear()
            if failed is not None:
                raise failed
        except CellError:
            raise
        except BaseException:
            self._end_processes()
            raise
        finally:
            self._shut_down()

    def _alone(self, task: str) -> dict[str, Any]:
        self._pool = self._make_pool(1, one_thread=self.processes > 1)
        try:
            return _result(task, self._pool.submit(_work, task, {}))
        except CellError:
            raise
        except BaseException:
            self._end_processes()
            raise
        finally:
            self._shut_down()

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = self._make_pool(self.processes, one_thread=True)
        return self._pool

    def _end_processes(self) -> None:
        """End the running cells at once, where the program was stopped; what they wrote is whole or not there."""
        # `ProcessPoolExecutor.kill_workers` does this from Python 3.14 on. Not `terminate`: a cell in training answers
        # that in its own time, and then waits for good for a lock that one ended beside it took along.
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.kill()

    def _shut_down(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _make_pool(self, processes: int, *, one_thread: bool) -> ProcessPoolExecutor:
        space = self.workspace
        return ProcessPoolExecutor(
            processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(space.experiment, space.root, space.output, space.limit, one_thread),
        )
