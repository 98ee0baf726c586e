"""Launchers: the engines that run the tasks of a comparison, what they have in common, and their options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from samparser._untrusted import parse_json

from .strict import ExperimentError
from .tasks import CellError, Task

_TRIES = 3


class JobLost(RuntimeError):  # noqa: N818
    """A job ended without a result and without an error of its own: a node was lost, a limit of time or memory hit."""


class NotStarted(RuntimeError):  # noqa: N818
    """The engine takes no more jobs now: a limit of its queue."""


class Launcher(Protocol):
    """What starts tasks elsewhere and brings their results.

    Attributes:
        at_once: How many jobs to have under way; None: all, as the engine has a queue.
        tries: How often a task is started before it counts as failed, where its jobs are lost.
        goes_on: Whether the other tasks are still run where one has failed.
    """

    at_once: int | None
    tries: int
    goes_on: bool

    def start(self, task: Task, rates: dict[str, float]) -> Any:
        """Start a task and return its job, which can be a key of a dictionary.

        Raises:
            NotStarted: The engine does not take it now.
        """

    def wait(self, jobs: Collection[Any]) -> Collection[Any]:
        """Return those of the jobs that have ended, at least one; wait until there is one."""

    def result(self, job: Any) -> dict[str, Any]:
        """Return the result of a job that has ended.

        Raises:
            CellError: The task failed.
            JobLost: The job ended without a result.
        """

    def stop(self) -> None:
        """End every job at once."""

    def close(self) -> None:
        """Give back what the launcher holds; called once, at the end."""


def unpacked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result in what `do_elsewhere` gives.

    Raises:
        CellError: The task failed.
    """
    if "failed" in answer:
        raise CellError(answer["failed"])
    result: dict[str, Any] = answer["result"]
    return result


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Return options that are given as `name=value`; values are JSON where they can be, else text.

    Raises:
        ExperimentError: A word has no `=`, or a name is given twice.

    Example:
        >>> parse_options(["timeout_min=60", "slurm_partition=gpu", 'slurm_setup=["module load cuda"]'])
        {'timeout_min': 60, 'slurm_partition': 'gpu', 'slurm_setup': ['module load cuda']}
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ExperimentError(f"launcher_options are given as NAME=VALUE, with blanks between them; got {word!r}.")
        if name in options:
            raise ExperimentError(f"launcher_options name {name} twice; give it once.")
        try:
            options[name] = parse_json(value)
        except ValueError:
            options[name] = value
    return options


def whole(options: dict[str, Any], name: str, otherwise: int) -> int:
    """Take a whole number of at least 1 out of the options.

    Raises:
        ExperimentError: It is none.
    """
    value = options.pop(name, otherwise)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExperimentError(f"launcher_options: {name} is {value!r}; it must be a whole number of at least 1.")
    return value


def tries_of(options: dict[str, Any]) -> int:
    """Take out of the options how often a task is started whose jobs are lost."""
    return whole(options, "tries", _TRIES)
