"""Reads an experiment file and refuses whatever it does not know; docs/compare.md states the format for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from samparser._untrusted import read_json
from samparser.data import DataSettings
from samparser.data.layouts import LAYOUTS
from samparser.data.settings import SPLITS
from samparser.methods import METHODS
from samparser.prompts import PromptSettings
from samparser.training import EvalSettings, TrainSettings

from .experiment import METRICS, RATES, DataSource, Experiment, MethodRow, Panels, ScoredSource, Search, training_fields
from .plugins import import_files
from .strict import ExperimentError, check_fields, from_json, refuse_unknown, said_where

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# What a comparison decides itself.
_OWN_DATA = ("data", "layout", "limit", "scan")
_Scored = TypeVar("_Scored", bound=ScoredSource)


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file.

    Raises:
        ExperimentError: It cannot be read, or something in it is unknown or contradictory; the message says where and
            what is possible.
    """
    path = Path(path)
    try:
        content = read_json(path)
    except OSError as error:
        raise ExperimentError(f"The experiment file {path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ExperimentError(f"The experiment file {error}.") from error
    return parse_experiment(content, path)


def parse_experiment(content: Any, path: Path = Path("experiment.json")) -> Experiment:
    """Make an experiment from what JSON holds; see `load_experiment`. Files in `imports` are executed first."""
    if not isinstance(content, dict):
        raise ExperimentError(f"{path}: an experiment is an object {{...}}, got {type(content).__name__}.")
    given, where = dict(content), path.name
    refuse_unknown(given, [part.name for part in fields(Experiment) if part.name != "file"], where)
    for name in ("data", "methods", "seeds", "notes", "imports"):
        if name in given and not isinstance(given[name], list):
            raise ExperimentError(f"{where}.{name} must be a list [...], got {given[name]!r}.")
    import_files([path.parent / str(name) for name in given.get("imports", [])])
    for name, parse in (("data", _data), ("methods", _row)):
        given[name] = tuple(parse(item, f"{where}.{name}[{i}]") for i, item in enumerate(given.get(name, [])))
    if given.get("also") is not None:
        given["also"] = _scored(ScoredSource, given["also"], f"{where}.also")
    for name, kind in (("search", Search), ("panels", Panels)):
        if given.get(name) is not None:
            given[name] = from_json(kind, given[name], f"{where}.{name}")
    given |= {name: tuple(given[name]) for name in ("seeds", "notes", "imports") if name in given}
    experiment = replace(from_json(Experiment, given, where), file=path)
    _check(experiment, where)
    return experiment


def _data(given: Any, where: str) -> DataSource:
    source = _scored(DataSource, given, where)
    refuse_unknown([source.train_split], SPLITS, where, "split")
    refuse_unknown(source.metrics, METRICS, where, "metric")
    if not source.metrics:
        raise ExperimentError(f"{where} needs at least one entry in metrics.")
    if source.train_split == source.test_split or "all" in (source.train_split, source.test_split):
        raise ExperimentError(
            f"{where} trains on {source.train_split!r} and scores on {source.test_split!r}; these share images."
        )
    _check_settings(source, where)
    check_fields(EvalSettings, source.evaluation, f"{where}.evaluation")
    return source


def _scored(kind: type[_Scored], given: Any, where: str) -> _Scored:
    """Read what every set that is scored has: where it lies and how it is read."""
    source = from_json(kind, given, where)
    _check_name(source.name, where)
    if source.layout != "auto":
        refuse_unknown([source.layout], ["auto", *LAYOUTS], where, "layout")
    refuse_unknown([source.test_split], SPLITS, where, "split")
    if any(Path(pattern).is_absolute() or ".." in Path(pattern).parts for pattern in source.files):
        raise ExperimentError(f"{where}.files are paths or globs inside of the folder, got {source.files}.")
    if not source.files:
        raise ExperimentError(f"{where} needs at least one entry in files.")
    allowed = [part.name for part in fields(DataSettings) if part.name not in _OWN_DATA]
    check_fields(DataSettings, source.options, f"{where}.options", allowed=allowed)
    with said_where(f"{where}.options"):
        source.settings(Path())
    return replace(source, title=source.title or source.name)


def _row(given: Any, where: str) -> MethodRow:
    row = from_json(MethodRow, given, where)
    refuse_unknown([row.method], METHODS, where, "method")
    refuse_unknown(row.options, METHODS[row.method].options, f"{where}.options", f"option of method {row.method!r}:")
    _check_settings(row, where)
    if row.train_images is not None and row.train_images < 1:
        raise ExperimentError(f"{where}.train_images is {row.train_images}; it must be at least 1.")
    row = replace(row, name=row.name or row.method)
    _check_name(row.name, where)
    return replace(row, label=row.label or row.name)


def _check_settings(part: DataSource | MethodRow | Experiment, where: str) -> None:
    check_fields(TrainSettings, part.training, f"{where}.training", allowed=training_fields())
    check_fields(PromptSettings, part.prompts, f"{where}.prompts")


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or "--" in name:
        raise ExperimentError(
            f"{where}: the name {name!r} becomes part of file names; use letters, digits and single _ . + - signs."
        )


def _check(experiment: Experiment, where: str) -> None:
    """Check what no part of an experiment can tell by itself."""
    _check_name(experiment.name, where)
    rows = [row.name for row in experiment.methods]
    if not rows:
        raise ExperimentError(f"{where}.methods is empty; an experiment needs at least one entry there.")
    for kind, names in (("data", [source.name for source in experiment.data]), ("methods", rows)):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ExperimentError(f"{where}.{kind}: the name {twice!r} occurs twice. Give one of them another `name`.")
    if not experiment.seeds or len(set(experiment.seeds)) < len(experiment.seeds):
        raise ExperimentError(f"{where}.seeds must be different whole numbers, at least one; got {experiment.seeds}.")
    _check_seeds(experiment.seeds, f"{where}.seeds")
    _check_settings(experiment, where)
    from_json(EvalSettings, experiment.evaluation, f"{where}.evaluation")
    refuse_unknown([experiment.reference], rows, f"{where}.reference", "row")
    for source in experiment.data:
        for row in experiment.methods:
            with said_where(f"{where}: settings of {row.name} on {source.name}"):
                experiment.train_settings(source, row)
                experiment.eval_settings(source, row)
    if experiment.also is not None and not experiment.data:
        raise ExperimentError(f"{where}.also is scored with trained models, but {where}.data is empty: nothing trains.")
    _check_panels(experiment, f"{where}.panels")
    _check_search(experiment, where)
    _check_paper(experiment, f"{where}.paper")


def _check_seeds(seeds: Iterable[int], where: str) -> None:
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise ExperimentError(f"{where} holds {wrong[0]}; seeds are whole numbers from 0 to {2**32 - 1:,}.")


def _check_panels(experiment: Experiment, where: str) -> None:
    panels = experiment.panels
    if panels is None:
        return
    refuse_unknown(panels.rows, [row.name for row in experiment.methods], f"{where}.rows", "row")
    titles = [row.label for row in experiment.methods if row.name in panels.rows]
    if not panels.rows or len(set(panels.rows)) < len(panels.rows) or len(set(titles)) < len(titles):
        raise ExperimentError(f"{where}.rows must be rows with different labels, at least one; got {panels.rows}.")
    _check_seeds([panels.seed], f"{where}.seed")
    if panels.images < 1:
        raise ExperimentError(f"{where}.images is {panels.images}; it must be at least 1.")


def _check_search(experiment: Experiment, where: str) -> None:
    search = experiment.search
    if search is None:
        tried = [row.name for row in experiment.methods if row.trials is not None]
        if tried:
            raise ExperimentError(f"{where}: {tried[0]} lists trials, but the experiment has no `search`.")
        return
    where = f"{where}.search"
    if not 0 < search.held_out < 1:
        raise ExperimentError(f"{where}.held_out is {search.held_out}; it must lie between 0 and 1.")
    if search.epochs is not None and not search.epochs > 0:
        raise ExperimentError(f"{where}.epochs is {search.epochs}; it must be greater than 0.")
    _check_seeds([search.seed], f"{where}.seed")
    refuse_unknown([search.metric], METRICS[:2], where, "metric")
    for row in experiment.methods:
        trials = experiment.trials(row)
        if len(trials) != len(search.trials) or not trials:
            raise ExperimentError(
                f"{where}: {row.name} has {len(trials)} trials, the search gives every row {len(search.trials)}. The "
                "comparison is fair only where all rows have the same number, at least one."
            )
        for trial in trials:
            refuse_unknown(trial, RATES, f"{where}: trials of {row.name}", "learning rate")
            with said_where(f"{where}: trials of {row.name}"):
                for source in experiment.data:
                    experiment.train_settings(source, row, **trial)


def _check_paper(experiment: Experiment, where: str) -> None:
    refuse_unknown(experiment.paper, [row.name for row in experiment.methods], where, "row")
    for row, columns in experiment.paper.items():
        if not isinstance(columns, dict):
            raise ExperimentError(f"{where}.{row} must be {{data set: {{metric: value}}}}, got {columns!r}.")
        refuse_unknown(columns, [source.name for source in experiment.data], f"{where}.{row}", "data set")
        for column, values in columns.items():
            if not isinstance(values, dict):
                raise ExperimentError(f"{where}.{row}.{column} must be {{metric: value}}, got {values!r}.")
            refuse_unknown(values, experiment.source(column).metrics, f"{where}.{row}.{column}", "metric of the set")
            for metric, value in values.items():
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                    raise ExperimentError(f"{where}.{row}.{column}.{metric} must be a percentage, got {value!r}.")
