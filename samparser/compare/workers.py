"""Runs tasks one after another in this process, or several at once through a launcher, and gives their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .launcher import JobLost, Launcher, NotStarted
from .on_pool import PoolLauncher
from .tasks import CellError, Place, Task, do, title_of
from .workspace import Workspace

_KEPT = "What is finished is kept; the same command goes on from there."


class Workers:
    """Runs tasks and gives their results in the order in which they finish.

    Args:
        workspace: Model and data.
        processes: How many at once on this machine. 1: in this process, with its threads; more: in processes of one
            thread each.
        launcher: Another engine to run them on; None: this machine.
        say: Gets one line for each job that was lost or that failed while others go on.
    """

    def __init__(
        self,
        workspace: Workspace,
        processes: int = 1,
        launcher: Launcher | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.workspace, self.processes, self.launcher, self.say = workspace, processes, launcher, say
        self._waiting: list[tuple[Task, dict[str, float]]] = []
        self._lost: dict[Task, int] = {}

    @property
    def waiting(self) -> int:
        """How many tasks have not been started."""
        return len(self._waiting)

    def add(self, task: Task, rates: Mapping[str, float] | None = None) -> None:
        """Put a task at the end of the line; allowed while `results` is being read."""
        self._waiting.append((task, dict(rates or {})))

    def results(self) -> Iterator[tuple[Task, dict[str, Any]]]:
        """Run everything that was added, and what is added meanwhile.

        Raises:
            CellError: A task failed. On this machine no other is started, and those that run at the same time give
                their results first; on another engine all others are run first.
        """
        if self.launcher is not None:
            yield from self._through(self.launcher)
            return
        # Costs first, one at a time and each in a fresh process: neighbours would disturb times and peaks of memory.
        for row in [task for task, _ in self._waiting if isinstance(task, str)]:
            yield row, self._measured_alone(row)
        self._waiting = [(task, rates) for task, rates in self._waiting if not isinstance(task, str)]
        while self.processes == 1 and self._waiting:
            task, rates = self._waiting.pop(0)
            yield task, do(self.workspace, task, rates)
        if self._waiting:
            yield from self._through(PoolLauncher(Place.of(self.workspace), self.processes, one_thread=True))

    def _measured_alone(self, row: str) -> dict[str, Any]:
        crew = Workers(self.workspace)
        crew.add(row)
        pool = PoolLauncher(Place.of(self.workspace), 1, one_thread=self.processes > 1)
        ((_, result),) = crew._through(pool)
        return result

    def _through(self, launcher: Launcher) -> Iterator[tuple[Task, dict[str, Any]]]:
        running: dict[Any, tuple[Task, dict[str, float]]] = {}
        failures: list[str] = []
        try:
            while self._waiting or running:
                while self._waiting and (launcher.at_once is None or len(running) < launcher.at_once):
                    task, rates = self._waiting[0]
                    try:
                        running[launcher.start(task, rates)] = (task, rates)
                    except NotStarted as error:
                        if not running:
                            raise CellError(f"{title_of(task)} could not be started: {error} {_KEPT}") from error
                        break  # the queue is full until one of ours has ended
                    self._waiting.pop(0)
                for job in launcher.wait(running):
                    task, rates = running.pop(job)
                    try:
                        result = launcher.result(job)
                    except JobLost as error:
                        self._again(launcher, task, rates, str(error), failures)
                    except CellError as error:
                        failures.append(str(error))
                        if launcher.goes_on:
                            self.say(f"{error}\nThe others go on.")
                    else:
                        yield task, result
                if failures and not launcher.goes_on:
                    # Also what was added on account of results that came after the failure.
                    self._waiting.clear()
            if failures:
                more = f"\n({len(failures)} tasks failed; this is the first.)" if len(failures) > 1 else ""
                raise CellError(failures[0] + more)
        except CellError:
            raise
        except BaseException:
            launcher.stop()
            raise
        finally:
            launcher.close()

    def _again(self, launcher: Launcher, task: Task, rates: dict[str, float], why: str, failures: list[str]) -> None:
        """Put a task whose job died back into the line, as often as the launcher allows."""
        self._lost[task] = self._lost.get(task, 0) + 1
        if self._lost[task] < launcher.tries:
            self.say(f"{title_of(task)}: {why} It is started again ({self._lost[task] + 1} of {launcher.tries} tries).")
            self._waiting.append((task, rates))
            return
        failures.append(f"{title_of(task)} failed: {why} {_KEPT}")
        if launcher.goes_on:
            self.say(f"{failures[-1]} The others go on.")
