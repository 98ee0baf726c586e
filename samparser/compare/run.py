"""Runs what is missing of an experiment, then writes its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from samparser._extras import require
from samparser._files import no_folder

from .also import BEFORE, BEFORE_FIELDS, before_settings, refuse_trained_on, score_before
from .cell import tidy
from .collect import Column, Report
from .counts import count_rows
from .experiment import Experiment, MethodRow, ScoredSource
from .figure import draw_figure
from .launchers import check_launcher, make_launcher
from .pages import write_report
from .plan import Cell, seed_cells, trains_nothing, trial_cells
from .store import ResultStore
from .strict import ExperimentError, refuse_unknown
from .tasks import Place, finished
from .workers import Workers
from .workspace import Workspace, require_data


def compare(
    experiment: Experiment,
    *,
    output: str | Path,
    data_root: str | Path | None = None,
    limit: int | None = None,
    processes: int | None = None,
    launcher: str = "processes",
    launcher_options: Mapping[str, Any] | None = None,
    cost: bool = True,
    say: Callable[[str], None] = print,
) -> Report:
    """Train and score every cell whose result is not there yet, and write `NAME.md` and `NAME.json`.

    With `panels` it draws `NAME.png` as well. An experiment without data sets only counts what its rows cost.

    Each finished cell is one file in `output/results`. A command that was stopped goes on where it was, also within
    a training; the files of cells that are finished are never written again.

    Args:
        experiment: What to run; `select` narrows it.
        output: Folder of the comparison.
        data_root: Folder of the data sets; not given: the experiment's own.
        limit: Use at most so many images of each split, for a trial.
        processes: Cells to run at once. 1: in this process, with all of its threads; more: in processes of one thread
            each. With another launcher the jobs to have under way; not given: as many as its queue takes.
        launcher: What runs the cells: `processes` of this machine, `submitit` (Slurm) or `ray`. The other two need
            `output`, `data_root` and the model on a disk that their machines share.
        launcher_options: What a job needs, and where it runs, see `SubmititLauncher` and `RayLauncher`.
        cost: Also count and measure the cost of each row.
        say: Gets one line for each finished cell.

    Raises:
        ExperimentError: Data are missing, a result in `output` was made with other settings, there can be no such
            folder, or the launcher does not know an option.
        CellError: A cell failed; those that are finished are kept.
    """
    if processes is not None and processes < 1:
        raise ExperimentError(f"processes is {processes}; it must be at least 1.")
    check_launcher(launcher, launcher_options or {})
    output = Path(output).expanduser().resolve()
    if reason := no_folder(output):
        raise ExperimentError(f"{reason}; name another output folder.")
    if not experiment.data:
        report = Report(experiment, [], count_rows(experiment, say))
        write_report(report, output)
        return report
    if experiment.panels is not None:
        require("matplotlib.figure", "Drawing the panels of an experiment")
    root = _root(experiment, data_root)
    require_data(_sources(experiment), root)
    workspace, store = Workspace(experiment, root, output, limit), ResultStore(output)
    try:
        run = _Run(workspace, store, Workers(workspace, processes or 1, say=say), say)
        run.start(cost=cost)
        if run.workers.waiting:
            run.workers.launcher = make_launcher(launcher, Place.of(workspace), processes, launcher_options or {})
        run.finish()
        report = Report(experiment, run.columns(), run.costs)
        draw_figure(workspace, report)
    except SystemExit as error:
        # With sys.exit(0) the command would end as if all had gone well.
        raise ExperimentError(
            f"A method or a layout that {experiment.file} imports calls sys.exit({error.code!r}). Let it raise an "
            "error that says what is wrong. What is finished is kept."
        ) from error
    write_report(report, output)
    return report


def select(experiment: Experiment, data: list[str] | None, rows: list[str] | None, seeds: int | None) -> Experiment:
    """Return the experiment with only these data sets and rows (and the reference), and so many seeds.

    More seeds than the experiment lists go on counting from its largest.
    """
    if data is not None:
        refuse_unknown(data, [source.name for source in experiment.data], "--data", "data set")
        experiment = replace(experiment, data=tuple(source for source in experiment.data if source.name in data))
    if rows is not None:
        refuse_unknown(rows, [row.name for row in experiment.methods], "--rows", "row")
        kept = {*rows, experiment.reference}
        experiment = replace(experiment, methods=tuple(row for row in experiment.methods if row.name in kept))
    if seeds is not None:
        if seeds < 1:
            raise ExperimentError(f"seeds is {seeds}; at least one is needed.")
        more = range(max(experiment.seeds) + 1, max(experiment.seeds) + 1 + seeds)
        experiment = replace(experiment, seeds=(*experiment.seeds, *more)[:seeds])
    return experiment


def _root(experiment: Experiment, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    if experiment.data_root is None:
        raise ExperimentError(
            f"{experiment.name} needs --data-root, the folder that holds "
            f"{', '.join(source.folder for source in _sources(experiment))}."
        )
    return experiment.file.parent / experiment.data_root


def _sources(experiment: Experiment) -> list[ScoredSource]:
    return [*experiment.data, *([] if experiment.also is None else [experiment.also])]


class _Run:
    """The state of one command: what is finished, what runs, what it waits for."""

    def __init__(self, workspace: Workspace, store: ResultStore, workers: Workers, say: Callable[[str], None]) -> None:
        self.workspace, self.store, self.workers, self.say = workspace, store, workers, say
        self.experiment = workspace.experiment
        self.results: dict[Cell, dict[str, Any]] = {}
        self.costs: dict[str, dict[str, Any]] = {}
        self.before: dict[str, Any] | None = None
        self.once = {row.name for row in self.experiment.methods if trains_nothing(row, workspace.base)}
        # What is forgotten is taken against the row that trains nothing, or else against the untuned model.
        self.needs_before = self.experiment.also is not None and not self.once
        self.started = time.perf_counter()
        self.run_here, self.planned = 0, 0

    @property
    def finished(self) -> int:
        """How many results are there."""
        return len(self.results) + len(self.costs) + (self.before is not None)

    def start(self, *, cost: bool) -> None:
        """Read what is finished, refuse what was made otherwise, and line up what is missing."""
        refuse_trained_on(self.workspace)
        self.planned = self._count(cost)
        if self.needs_before:
            self.before = self.store.read_same(BEFORE, before_settings(self.workspace), BEFORE_FIELDS)
        for row in self.experiment.methods if cost else ():
            found = finished(self.workspace, row.name, {})
            if found is None:
                self.workers.add(row.name)
            else:
                self.costs[row.name] = found
        for source in self.experiment.data:
            for row in self.experiment.methods:
                if row.name in self.once:
                    self._want(Cell(source.name, row.name, "once"), {})
                    continue
                trials = trial_cells(self.experiment, source.name, row)
                for cell in trials:
                    self._want(cell, self.experiment.trials(row)[cell.number])
                self._want_seeds(source.name, row)
        if self.finished < self.planned:
            self.say(f"{self.finished} of {self.planned} results are there")

    def finish(self) -> None:
        """Run what is lined up, and the seeds of each row once its trials are finished."""
        if self.needs_before and self.before is None:
            assert self.experiment.also is not None
            self.before = score_before(self.workspace)
            self.store.write(BEFORE, self.before)
            score = self.before["also"]["scores"]["instance_image_mean"]["miou"]
            self._tell(f"{self.experiment.also.name} before training", f"mIoU {100 * score:.2f}")
        for task, result in self.workers.results():
            if isinstance(task, str):
                self.costs[task] = result
                self._tell(f"cost of {task}", f"{result['step_ratio']:.2f} of the reference's step")
                continue
            tidy(self.workspace.output, task)
            self.results[task] = result
            score = result["scores"]["instance_image_mean"]["miou"]
            seconds = result["time"]["total_seconds"]
            self._tell(str(task), f"mIoU {100 * score:.2f}, {seconds:.0f} s" if score is not None else "nothing scored")
            if task.kind == "trial":
                self._want_seeds(task.data, self.experiment.row(task.row))

    def rates(self, data: str, row: MethodRow) -> dict[str, float] | None:
        """Return the learning rates that a row trains with; None while its trials are not finished."""
        trials = self.experiment.trials(row)
        if len(trials) <= 1:
            return dict(trials[0]) if trials else {}
        results = [self.results.get(cell) for cell in trial_cells(self.experiment, data, row)]
        finished = [result for result in results if result is not None]
        if len(finished) < len(trials):
            return None
        return dict(trials[best_trial(finished, self._search_metric())])

    def columns(self) -> list[Column]:
        """Return what the table is made of."""
        columns = []
        for source in self.experiment.data:
            runs: dict[str, list[dict[str, Any]]] = {}
            trials: dict[str, list[dict[str, Any]]] = {}
            for row in self.experiment.methods:
                if row.name in self.once:
                    runs[row.name] = [self.results[Cell(source.name, row.name, "once")]]
                    continue
                runs[row.name] = [self.results[cell] for cell in seed_cells(self.experiment, source.name, row)]
                trials[row.name] = [self.results[cell] for cell in trial_cells(self.experiment, source.name, row)]
            train_set, test_set = self.workspace.sets(source)
            known = next((row.name for row in self.experiment.methods if row.name in self.once), None)
            before = runs[known][0] if known is not None else self.before
            also = None if self.experiment.also is None or before is None else before["also"]
            columns.append(Column(source, runs, trials, len(train_set), len(test_set), also, known))
        return columns

    def _want_seeds(self, data: str, row: MethodRow) -> None:
        rates = self.rates(data, row)
        if rates is not None:
            for cell in seed_cells(self.experiment, data, row):
                self._want(cell, rates)

    def _want(self, cell: Cell, rates: Mapping[str, float]) -> None:
        found = finished(self.workspace, cell, dict(rates))
        if found is not None:
            tidy(self.workspace.output, cell)
            self.results[cell] = found
        else:
            self.workers.add(cell, rates)

    def _count(self, cost: bool) -> int:
        """Count all results of the experiment, finished or not."""
        experiment = self.experiment
        trainings = [
            1 if row.name in self.once else len(trial_cells(experiment, source.name, row)) + len(experiment.seeds)
            for source in experiment.data
            for row in experiment.methods
        ]
        return len(experiment.methods) * cost + sum(trainings) + self.needs_before

    def _search_metric(self) -> str:
        return self.experiment.search.metric if self.experiment.search is not None else "miou"

    def _tell(self, what: str, result: str) -> None:
        self.run_here += 1
        elapsed = time.perf_counter() - self.started
        left = elapsed / self.run_here * (self.planned - self.finished) / 60
        self.say(f"[{self.finished}/{self.planned}] {what}: {result}; about {left:.0f} min to go")


def best_trial(results: list[dict[str, Any]], metric: str) -> int:
    """Return the number of the trial with the best score on the images held out; the first of equals."""
    scores = [result["scores"]["instance_image_mean"][metric] for result in results]
    return max(range(len(scores)), key=lambda number: -1.0 if scores[number] is None else scores[number])
