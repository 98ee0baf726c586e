"""An experiment as data: which model, data sets, methods, settings and seeds, and what the paper reports for them.

An experiment is one JSON file. `load_experiment` reads it into these dataclasses and refuses whatever it does not know;
docs/compare.md states the format for people.
"""

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samparser.data import DataSettings
from samparser.data.layouts import LAYOUTS
from samparser.data.settings import SPLITS
from samparser.methods import METHODS
from samparser.prompts import PromptSettings
from samparser.training import EvalSettings, TrainSettings

from .panels import Panels
from .plugins import import_files
from .strict import ExperimentError, check_fields, from_json, refuse_unknown

METRICS = ("miou", "f1", "dsc")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# What a comparison decides itself; a file that sets these would make its rows incomparable or its test set a
# validation set.
_OWN_TRAINING = (
    *("seed", "cache", "cache_projected", "cache_limit_gb", "eval_every", "eval_limit"),
    *("metric", "patience", "keep_checkpoints", "report_to", "score_before"),
)
_OWN_DATA = ("data", "layout", "limit", "scan")
RATES = ("learning_rate", "coefficient_lr")


def _training_fields() -> list[str]:
    return [part.name for part in fields(TrainSettings) if part.name not in _OWN_TRAINING]


@dataclass(frozen=True)
class DataSource:
    """One data set of an experiment.

    Attributes:
        name: Key of the set in result files and in ``paper``.
        folder: Where it lies, relative to the data root.
        source: Where the set comes from (address, citation): told when it is not there.
        files: What the folder must hold, as paths or globs relative to it: told when something is missing.
        title: Column title; by default the name.
        layout: A layout of `samparser.data`, by name; ``auto`` looks at the files.
        options: Further fields of `DataSettings`: ``val_ratio``, ``classes``, ``min_area``, ``split_volumes``, ...
        train_split: Split to train on.
        test_split: Split to score on. Nothing is chosen by its scores.
        metrics: Scores to report: ``miou``, ``f1``, and ``dsc`` for volumes.
        training: Fields of `TrainSettings` that differ from the experiment's for this set, ``recipe`` for instance.
        prompts: Fields of `PromptSettings` that differ for this set.
        cache: Whether methods that train nothing before the neck may train from cached features. The disk need is 6.3
            MB an image for ViT-B: set it to false for sets of many thousand images.
    """

    name: str
    folder: str
    source: str
    files: list[str]
    title: str = ""
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "val"
    metrics: list[str] = field(default_factory=lambda: ["miou", "f1"])
    training: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    cache: bool = True

    def settings(self, root: Path, limit: int | None = None) -> DataSettings:
        """What `open_dataset` is told."""
        return DataSettings(data=str(root / self.folder), layout=self.layout, limit=limit, **self.options)


@dataclass(frozen=True)
class MethodRow:
    """One row of the table: a method with its options and whatever is set differently for it.

    Attributes:
        method: A name of `samparser.methods.METHODS`.
        name: Key of the row in result files and in ``paper``; by default the method's name.
        label: Title of the row; by default the name.
        options: Options of the method, ``{"parametrization": "relative"}`` for instance.
        training: Fields of `TrainSettings` that differ for this row, ``coefficient_lr`` for instance.
        prompts: Fields of `PromptSettings` that differ for this row, ``jitter_max`` for instance.
        train_images: Train on so many images, drawn by the cell's seed; not given: on all.
        trials: The learning rates that this row tries in place of ``search.trials``, as many as those.
        paper_trained_k: Trained parameters that the paper prints, in units of 1024.
        paper_gmac: What the paper prints as FLOPs (G) of the whole model: 10^9 multiply-accumulates.
    """

    method: str
    name: str = ""
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    train_images: int | None = None
    trials: list[dict[str, float]] | None = None
    paper_trained_k: float | None = None
    paper_gmac: float | None = None


@dataclass(frozen=True)
class Search:
    """How learning rates are chosen: every row has the same number of trials of the same length.

    A part of the training images is held out, each trial trains on the others, and the rates of the trial with the best
    score on the held-out images are those that all seeds of the row train with, on all training images.

    Attributes:
        trials: Learning rates to try, ``[{"learning_rate": 1e-4}, ...]``; ``coefficient_lr`` may stand beside.
        held_out: Part of the training images that is held out.
        epochs: Passes of a trial over its images; not given: as many as the final training.
        seed: Draws the held-out images and trains the trials.
        metric: What chooses.
    """

    trials: list[dict[str, float]]
    held_out: float = 0.25
    epochs: float | None = None
    seed: int = 1000
    metric: str = "miou"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a table, but where the data lies.

    Attributes:
        name: Name of the files that are written.
        title: Title of the written page.
        data: The data sets, one column each. None: nothing is trained, the cost of each row is counted.
        methods: The rows.
        model: SAM checkpoint: a folder, relative to the experiment file, or a hub id.
        training: Fields of `TrainSettings` for all cells: ``recipe``, ``epochs``, ``learning_rate``, ...
        prompts: Fields of `PromptSettings` for all cells.
        evaluation: Fields of `EvalSettings`.
        seeds: One training per row, data set and seed.
        reference: Name of the row that differences are taken to.
        search: How learning rates are chosen; not given: they are those of ``training``.
        paper: What the paper reports, in percent: ``{row: {data set: {metric: value}}}``.
        panels: Which images and rows to draw.
        notes: Sentences to print below the table.
        data_root: Data root where the command gives none, relative to the experiment file.
        imports: Python files, relative to the experiment file, that add methods or layouts. They are executed.
        file: Where it was read.
    """

    name: str
    title: str
    data: tuple[DataSource, ...]
    methods: tuple[MethodRow, ...]
    model: str = "facebook/sam-vit-base"
    training: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = "decoder"
    search: Search | None = None
    paper: dict[str, Any] = field(default_factory=dict)
    panels: Panels | None = None
    notes: tuple[str, ...] = ()
    data_root: str | None = None
    imports: tuple[str, ...] = ()
    file: Path = Path("experiment.json")

    def row(self, name: str) -> MethodRow:
        """The row called ``name``."""
        return next(row for row in self.methods if row.name == name)

    def source(self, name: str) -> DataSource:
        """The data set called ``name``."""
        return next(source for source in self.data if source.name == name)

    def model_path(self) -> str:
        """The checkpoint folder where there is one beside the experiment file; the hub id otherwise."""
        beside = self.file.parent / self.model
        return str(beside) if beside.is_dir() else self.model

    def train_settings(self, source: DataSource, row: MethodRow, **more: Any) -> TrainSettings:
        """The settings of a cell: the experiment's, over them the data set's, the row's, and ``more``; resolved."""
        return TrainSettings(**{**self.training, **source.training, **row.training, **more}).resolved()

    def prompt_settings(self, source: DataSource, row: MethodRow) -> PromptSettings:
        """The prompts of a cell, put together like its settings."""
        return PromptSettings(**{**self.prompts, **source.prompts, **row.prompts})

    def eval_settings(self, source: DataSource, row: MethodRow) -> EvalSettings:
        """How a cell is scored: with the kind of prompt that it trains with, unless the experiment names another."""
        return EvalSettings(**self.evaluation).resolved(self.prompt_settings(source, row))

    def trials(self, row: MethodRow) -> list[dict[str, float]]:
        """The learning rates that a row tries; empty where nothing is searched."""
        return [] if self.search is None else (row.trials or self.search.trials)


def load_experiment(path: str | Path) -> Experiment:
    """Reads an experiment file.

    Raises:
        ExperimentError: It cannot be read, or something in it is unknown or contradictory; the message says where and
            what is possible.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ExperimentError(f"The experiment file {path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ExperimentError(f"The experiment file {path} is not JSON: {error}.") from error
    return parse_experiment(content, path)


def parse_experiment(content: Any, path: Path = Path("experiment.json")) -> Experiment:
    """An experiment from what JSON holds; see `load_experiment`. Files in ``imports`` are executed first."""
    if not isinstance(content, dict):
        raise ExperimentError(f"{path}: an experiment is an object {{...}}, got {type(content).__name__}.")
    given = dict(content)
    refuse_unknown(given, [part.name for part in fields(Experiment) if part.name != "file"], path.name)
    for name in ("data", "methods", "seeds", "notes", "imports"):
        if name in given and not isinstance(given[name], list):
            raise ExperimentError(f"{path.name}.{name} must be a list [...], got {given[name]!r}.")
    import_files([path.parent / str(name) for name in given.get("imports", [])])
    given["data"] = tuple(
        _data(item, f"{path.name}.data[{number}]") for number, item in enumerate(given.get("data", []))
    )
    given["methods"] = tuple(
        _row(item, f"{path.name}.methods[{number}]") for number, item in enumerate(given.get("methods", []))
    )
    if given.get("search") is not None:
        given["search"] = from_json(Search, given["search"], f"{path.name}.search")
    if given.get("panels") is not None:
        given["panels"] = from_json(Panels, given["panels"], f"{path.name}.panels")
    given |= {name: tuple(given[name]) for name in ("seeds", "notes", "imports") if name in given}
    experiment = replace(from_json(Experiment, given, path.name), file=path)
    _check(experiment, path.name)
    return experiment


def _data(given: Any, where: str) -> DataSource:
    source = from_json(DataSource, given, where)
    _check_name(source.name, where)
    if source.layout != "auto":
        refuse_unknown([source.layout], ["auto", *LAYOUTS], where, "layout")
    refuse_unknown([source.train_split, source.test_split], SPLITS, where, "split")
    refuse_unknown(source.metrics, METRICS, where, "metric")
    if any(Path(pattern).is_absolute() or ".." in Path(pattern).parts for pattern in source.files):
        raise ExperimentError(f"{where}.files are paths or globs inside of the folder, got {source.files}.")
    if not source.files or not source.metrics:
        raise ExperimentError(f"{where} needs at least one entry in files and in metrics.")
    if source.train_split == source.test_split or "all" in (source.train_split, source.test_split):
        raise ExperimentError(
            f"{where} trains on {source.train_split!r} and scores on {source.test_split!r}; these share images."
        )
    allowed = [part.name for part in fields(DataSettings) if part.name not in _OWN_DATA]
    check_fields(DataSettings, source.options, f"{where}.options", allowed=allowed)
    check_fields(TrainSettings, source.training, f"{where}.training", allowed=_training_fields())
    check_fields(PromptSettings, source.prompts, f"{where}.prompts")
    try:
        source.settings(Path())
    except ValueError as error:
        raise ExperimentError(f"{where}.options: {error}") from error
    return replace(source, title=source.title or source.name)


def _row(given: Any, where: str) -> MethodRow:
    row = from_json(MethodRow, given, where)
    refuse_unknown([row.method], METHODS, where, "method")
    refuse_unknown(row.options, METHODS[row.method].options, f"{where}.options", f"option of method {row.method!r}:")
    check_fields(TrainSettings, row.training, f"{where}.training", allowed=_training_fields())
    check_fields(PromptSettings, row.prompts, f"{where}.prompts")
    if row.train_images is not None and row.train_images < 1:
        raise ExperimentError(f"{where}.train_images is {row.train_images}; it must be at least 1.")
    row = replace(row, name=row.name or row.method)
    _check_name(row.name, where)
    return replace(row, label=row.label or row.name)


def _check(experiment: Experiment, where: str) -> None:
    _check_name(experiment.name, where)
    for kind, items in (("data", experiment.data), ("methods", experiment.methods)):
        names = [item.name for item in items]
        if not names and kind == "methods":
            raise ExperimentError(f"{where}.{kind} is empty; an experiment needs at least one entry there.")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ExperimentError(f"{where}.{kind}: the name {twice!r} occurs twice. Give one of them another `name`.")
    if not experiment.seeds or len(set(experiment.seeds)) < len(experiment.seeds):
        raise ExperimentError(f"{where}.seeds must be different whole numbers, at least one; got {experiment.seeds}.")
    check_fields(TrainSettings, experiment.training, f"{where}.training", allowed=_training_fields())
    check_fields(PromptSettings, experiment.prompts, f"{where}.prompts")
    from_json(EvalSettings, experiment.evaluation, f"{where}.evaluation")
    rows = [row.name for row in experiment.methods]
    refuse_unknown([experiment.reference], rows, f"{where}.reference", "row")
    for source in experiment.data:
        for row in experiment.methods:
            try:
                experiment.train_settings(source, row)
                experiment.eval_settings(source, row)
            except ValueError as error:
                raise ExperimentError(f"{where}: settings of {row.name} on {source.name}: {error}") from error
    if experiment.panels is not None:
        experiment.panels.check([(row.name, row.label) for row in experiment.methods], f"{where}.panels")
    _check_search(experiment, where)
    _check_paper(experiment, where)


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
            for source in experiment.data:
                try:
                    experiment.train_settings(source, row, **trial)
                except ValueError as error:
                    raise ExperimentError(f"{where}: trials of {row.name}: {error}") from error


def _check_paper(experiment: Experiment, where: str) -> None:
    where = f"{where}.paper"
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


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or "--" in name:
        raise ExperimentError(
            f"{where}: the name {name!r} becomes part of file names; use letters, digits and single _ . + - signs."
        )


def with_settings(experiment: Experiment, **training: Any) -> Experiment:
    """The experiment with other training settings in every cell, whatever data sets, rows and search say.

    Raises:
        ExperimentError: There is no such setting, or it cannot have this value.
    """
    given = check_fields(TrainSettings, training, "settings", allowed=_training_fields())
    try:
        TrainSettings(**given)
    except ValueError as error:
        raise ExperimentError(f"settings: {error}") from error
    search = experiment.search
    if search is not None and "epochs" in given:
        search = replace(search, epochs=None)
    return replace(
        experiment,
        search=search,
        training={**experiment.training, **given},
        data=tuple(replace(part, training={**part.training, **given}) for part in experiment.data),
        methods=tuple(replace(part, training={**part.training, **given}) for part in experiment.methods),
    )


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain values, as it stands in the results."""
    content = asdict(experiment)
    del content["file"]
    return json.loads(json.dumps(content))
