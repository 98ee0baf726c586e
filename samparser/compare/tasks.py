"""A task of a comparison, wherever it runs: a cell or the cost of a row, with its log, its lock and its result file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samparser._lock import FolderLocked, locked

from .cell import CELL_FIELDS, run_cell
from .experiment import Experiment
from .plan import Cell
from .plugins import import_files
from .step_cost import COST_FIELDS, cost_settings, measure_cost
from .store import ResultStore
from .workspace import Workspace

Task = Cell | str  # a cell, or the name of a row whose cost is measured

_SECONDS_BETWEEN_LOOKS = 1.0


class CellError(RuntimeError):
    """A cell failed; the message names it, its log, and what it said."""


@dataclass(frozen=True)
class Place:
    """What another process, perhaps on another machine, needs to open the workspace: the arguments of `Workspace`."""

    experiment: Experiment
    root: Path
    output: Path
    limit: int | None

    @classmethod
    def of(cls, workspace: Workspace) -> Place:
        """Return the place of an open workspace, with paths that hold in any working folder."""
        experiment = replace(workspace.experiment, file=workspace.experiment.file.resolve())
        return cls(experiment, workspace.root.resolve(), workspace.output.resolve(), workspace.limit)

    def open(self) -> Workspace:
        """Return the workspace; the files that the experiment imports are executed first."""
        import_files([self.experiment.file.parent / name for name in self.experiment.imports])
        return Workspace(self.experiment, self.root, self.output, self.limit)


def name_of(task: Task) -> str:
    """Return the name of a task's result file, without suffix."""
    return f"cost--{task}" if isinstance(task, str) else task.name


def title_of(task: Task) -> str:
    """Return what a task is called in messages."""
    return f"the cost of {task}" if isinstance(task, str) else str(task)


def finished(workspace: Workspace, task: Task, rates: dict[str, float]) -> dict[str, Any] | None:
    """Return the result of a task that was run before with the same settings; None where there is none.

    Raises:
        ExperimentError: It was made with other settings.
    """
    store = ResultStore(workspace.output)
    if isinstance(task, str):
        return store.read_same(name_of(task), cost_settings(workspace, workspace.experiment.row(task)), COST_FIELDS)
    settings = workspace.settings_of(task, rates)
    found = store.read_same(name_of(task), settings, CELL_FIELDS)
    if found is not None and "also" in settings:
        found = store.read_same(name_of(task), settings, (*CELL_FIELDS, "also"))
    return found


def do(workspace: Workspace, task: Task, rates: dict[str, float]) -> dict[str, Any]:
    """Run a task and write its result file; progress bars and warnings go to a log file.

    Where another process is running the task, of a command that was killed and whose jobs live on, it waits for that
    one; where the result is there by then, it returns it.

    Raises:
        CellError: It failed.
    """
    log = workspace.output / "logs" / f"{name_of(task)}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            log.open("a", encoding="utf-8") as file,
            contextlib.redirect_stderr(file),
            contextlib.redirect_stdout(file),
            _alone(log.parent, name_of(task)),
        ):
            result = finished(workspace, task, rates)
            if result is not None:
                return result
            if isinstance(task, str):
                result = measure_cost(workspace, workspace.experiment.row(task))
            else:
                result = run_cell(workspace, task, rates)
            ResultStore(workspace.output).write(name_of(task), result)
            return result
    except (Exception, SystemExit) as error:
        # Errors of other packages cannot always be carried from one process to another; their text can.
        raise CellError(
            f"{title_of(task)} failed: {type(error).__name__}: {error}\nIts log is {log}. What is finished is kept; "
            "the same command goes on from there."
        ) from error


def do_elsewhere(place: Place, task: Task, rates: dict[str, float], threads: int) -> dict[str, Any]:
    """Run a task in a fresh process of another machine, and return its result, or what went wrong, as plain values.

    Args:
        place: Where everything lies, on a disk that the machines share.
        task: What to run.
        rates: The learning rates of the cell.
        threads: Of PyTorch, which would otherwise take as many as the machine has cores.

    Returns:
        `{"result": ...}`, or `{"failed": text}`: errors do not travel well from one engine to another.
    """
    torch.set_num_threads(threads)
    try:
        return {"result": do(opened(place, task), task, rates)}
    except CellError as error:
        return {"failed": str(error)}


def opened(place: Place, task: Task) -> Workspace:
    """Return the workspace of a process that was just started.

    Raises:
        CellError: It cannot be opened; the message names the task that the process was started for.
    """
    try:
        return place.open()
    except (Exception, SystemExit) as error:
        raise CellError(f"{title_of(task)} failed: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a task for this process until the block ends; wait where another process has it."""
    told = False
    while True:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(folder, f"{name}.lock"))
            except FolderLocked as error:
                if not told:
                    print(f"Another command runs this: {error} Waiting for it.", flush=True)
                told = True
            else:
                yield
                return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
