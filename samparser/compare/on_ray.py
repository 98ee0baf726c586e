"""Ray as a launcher: one task of a Ray cluster, or of this machine, for each task of a comparison."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from samparser._extras import require

from .launcher import JobLost, tries_of, unpacked, whole
from .strict import ExperimentError
from .tasks import Place, Task, do_elsewhere


class RayLauncher:
    """Starts each task in a fresh process of a Ray cluster.

    Args:
        place: What the processes open; `place.output` has to lie on a disk that all machines see.
        processes: How many tasks to have under way; None: all, as Ray starts as many as its processors allow.
        options: `address` of the cluster (not given: that of the environment, else this machine), `tries`, and what a
            task needs, in the words of `ray.remote`: `num_cpus`, `num_gpus`, `memory`, `resources`, ...

    Raises:
        ExperimentError: Ray does not know an option, or the cluster does not answer.
        ImportError: Ray is not installed.
    """

    goes_on = True

    def __init__(self, place: Place, processes: int | None, options: Mapping[str, Any]) -> None:
        ray = self._ray = require("ray", "The launcher ray", "cluster")
        given = dict(options)
        self.tries = tries_of(given)
        self._threads = whole(given, "num_cpus", 1)
        address = given.pop("address", None)
        own = sorted(given.keys() & {"max_calls", "max_retries", "num_returns", "retry_exceptions"})
        if own:
            raise ExperimentError(f"launcher_options: {own[0]} is the comparison's own; tries says how often to try.")
        self.at_once = processes
        try:
            # Retries are ours, so that they are told; one call a process, as a process of Ray keeps what it loaded.
            remote = ray.remote(num_cpus=self._threads, max_retries=0, max_calls=1)(do_elsewhere)
            self._remote = remote.options(**given) if given else remote
        except (TypeError, ValueError) as error:
            raise ExperimentError(f"Ray cannot start tasks with the launcher_options: {error}") from error
        self._started_here = not ray.is_initialized()
        if self._started_here:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **_of_own_instance(address))
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ExperimentError(f"The Ray cluster {address or ''} does not answer: {error}") from error
        self._place = ray.put(place)
        self._jobs: set[Any] = set()

    def start(self, task: Task, rates: dict[str, float]) -> Any:
        """Give a task to Ray."""
        job = self._remote.remote(self._place, task, rates, self._threads)
        self._jobs.add(job)
        return job

    def wait(self, jobs: Collection[Any]) -> Collection[Any]:
        """Return the tasks that have ended, once there is one."""
        ended: list[Any] = self._ray.wait(list(jobs), num_returns=1)[0]
        return ended

    def result(self, job: Any) -> dict[str, Any]:
        """Return what a task that has ended gave."""
        self._jobs.discard(job)
        errors = self._ray.exceptions
        try:
            return unpacked(self._ray.get(job))
        except errors.RayTaskError as error:
            # It did not come as far as the cell: samparser, or what the experiment imports, is not there.
            raise JobLost(f"Ray could not run it: {error}") from error
        except errors.RayError as error:
            raise JobLost(
                f"its process or its machine was lost ({type(error).__name__}), as when memory runs out or a node "
                "fails."
            ) from error

    def stop(self) -> None:
        """End what runs; a training goes on from its checkpoint when it is run again."""
        for job in self._jobs:
            self._ray.cancel(job, force=True)

    def close(self) -> None:
        """End Ray where it was started here."""
        if self._started_here:
            self._ray.shutdown()


def _of_own_instance(address: str | None) -> dict[str, Any]:
    """Return what only a Ray that is started here can be told: no page that shows its state."""
    return {"include_dashboard": False} if address is None else {}
