"""Slurm as a launcher, through submitit: one job for each task, and jobs that are lost are started again."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samparser._extras import require

from .launcher import JobLost, NotStarted, tries_of, unpacked, whole
from .strict import ExperimentError
from .tasks import Place, Task, do_elsewhere

_CLUSTERS = ("slurm", "local")
# submitit's own limits are 5 minutes on Slurm and 2 on this machine, less than most cells take.
_MINUTES = 720
_ONE = "a cell is one process on one machine; leave it out, and let --processes say how many cells run at once"
_FIRST_LOOK, _LONGEST_LOOK = 0.1, 10.0


class SubmititLauncher:
    """Submits each task as a job of Slurm, or starts it in a process of this machine, to try that out.

    Args:
        place: What the jobs open; `place.output` has to lie on a disk that they see too.
        processes: How many jobs to have under way; None: all on Slurm, which has a queue, one at a time here.
        options: `cluster` (slurm, local; not given: slurm where there is one), `tries`, and the parameters of
            `submitit.AutoExecutor` (`timeout_min`, `mem_gb`, `cpus_per_task`, `gpus_per_node`, `slurm_partition`, ...).

    Raises:
        ExperimentError: submitit does not know an option, there is no Slurm here, or more than one process or machine
            is asked for.
        ImportError: submitit is not installed.
    """

    goes_on = True

    def __init__(self, place: Place, processes: int | None, options: Mapping[str, Any]) -> None:
        submitit = require("submitit", "The launcher submitit", "cluster")
        given = dict(options)
        self.tries = tries_of(given)
        self._threads = whole(given, "cpus_per_task", 1)
        for name in ("nodes", "tasks_per_node", "slurm_ntasks_per_node", "slurm_nodes", "slurm_tasks_per_node"):
            if given.get(name, 1) != 1:
                raise ExperimentError(f"launcher_options: {name} is {given[name]!r}; {_ONE}.")
        cluster = given.pop("cluster", None)
        if cluster is not None and cluster not in _CLUSTERS:
            raise ExperimentError(f"launcher_options: cluster is {cluster!r}; known are {', '.join(_CLUSTERS)}.")
        # A folder for each command: submitit names files after the job's number, which comes again on a machine.
        self._folder = Path(place.output) / "jobs" / uuid.uuid4().hex[:12]
        parameters = {"timeout_min": _MINUTES, "name": place.experiment.name, **given, "cpus_per_task": self._threads}
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster)
            self._executor.update_parameters(**parameters)
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            self._delete()
            raise ExperimentError(f"submitit cannot start jobs with the launcher_options: {error}") from error
        alone = self._executor.cluster != "slurm"
        self.at_once = processes if processes is not None else 1 if alone else None
        self._errors = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)
        self._place = place
        self._jobs: set[Any] = set()
        self._all_well = True

    def start(self, task: Task, rates: dict[str, float]) -> Any:
        """Submit a task."""
        try:
            job = self._executor.submit(do_elsewhere, self._place, task, rates, self._threads)
        except self._errors as error:
            raise NotStarted(f"sbatch refused the job: {error}") from error
        self._jobs.add(job)
        return job

    def wait(self, jobs: Collection[Any]) -> Collection[Any]:
        """Look, ever more seldom, which jobs have ended; submitit asks Slurm once a minute at most."""
        pause = _FIRST_LOOK
        while not (ended := [job for job in jobs if job.done()]):
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_LOOK)
        return ended

    def result(self, job: Any) -> dict[str, Any]:
        """Return what a job that has ended gave."""
        self._jobs.discard(job)
        lost, raised = self._errors
        try:
            return unpacked(job.result())
        except lost as error:
            self._all_well = False
            raise JobLost(
                f"job {job.job_id} ended without a result (state {job.state}): its machine was lost, or a limit of "
                f"time or memory was reached. Its output is in {job.paths.stderr}."
            ) from error
        except raised as error:
            self._all_well = False
            # It did not come as far as the cell: samparser, or what the experiment imports, is not there.
            raise JobLost(f"job {job.job_id} could not run it: {error}") from error
        except Exception:
            self._all_well = False
            raise

    def stop(self) -> None:
        """Cancel what was submitted; a training goes on from its checkpoint when it is run again."""
        self._all_well = False
        for job in self._jobs:
            job.cancel(check=False)

    def close(self) -> None:
        """Delete submitit's files, where nothing is to be read in them."""
        if self._all_well and not self._jobs:
            self._delete()

    def _delete(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._folder.parent.is_dir() and not any(self._folder.parent.iterdir()):
            self._folder.parent.rmdir()
