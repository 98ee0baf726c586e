"""An experiment as data: which model, data sets, methods, settings and seeds, and what the paper reports for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from samparser.data import DataSettings
from samparser.prompts import PromptSettings
from samparser.sam.frame_choice import ChosenFrame
from samparser.training import EvalSettings, TrainSettings
from samparser.training.also import tight

from .strict import check_fields, said_where

METRICS = ("miou", "f1", "dsc")
# What a comparison decides itself; a file that sets these would make its rows incomparable or its test set a
# validation set.
_OWN_TRAINING = (
    *("output_dir", "seed", "cache", "cache_projected", "cache_limit_gb", "eval_strategy", "eval_steps", "eval_limit"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience", "save_total_limit", "report_to"),
    *("score_before", "push_to_hub", "hub_model_id"),
)
RATES = ("learning_rate", "coefficient_lr")


def training_fields() -> list[str]:
    """Return the names of the training settings that an experiment may set."""
    return [name for name in TrainSettings.usual() if name not in _OWN_TRAINING]


@dataclass(frozen=True)
class ScoredSource:
    """A data set that is scored: where it lies and how it is read.

    Attributes:
        name: Key of the set in result files and in `paper`.
        folder: Where it lies, relative to the data root.
        source: Where the set comes from (address, citation): told when it is not there.
        files: What the folder must hold, as paths or globs relative to it: told when something is missing.
        title: Column title; by default the name.
        layout: A layout of `samparser.data`, by name; `auto` looks at the files.
        options: Further fields of `DataSettings`: `val_ratio`, `classes`, `min_area`, `split_volumes`, ...
        test_split: Split to score on. Nothing is chosen by its scores.
    """

    name: str
    folder: str
    source: str
    files: list[str]
    title: str = ""
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    test_split: str = "val"

    def settings(self, root: Path, limit: int | None = None) -> DataSettings:
        """Return what `open_dataset` is told."""
        return DataSettings(data=str(root / self.folder), layout=self.layout, limit=limit, **self.options)


@dataclass(frozen=True)
class DataSource(ScoredSource):
    """One data set of an experiment, to train on and to score.

    Attributes:
        train_split: Split to train on.
        metrics: Scores to report: `miou`, `f1`, and `dsc` for volumes.
        training: Fields of `TrainSettings` that differ from the experiment's for this set, `recipe` for instance.
        prompts: Fields of `PromptSettings` that differ for this set.
        evaluation: Fields of `EvalSettings` that differ for this set, `eval_jitter` for instance.
        cache: Whether methods that train nothing before the neck may train from cached features. The disk need is 6.3
            MB an image for ViT-B: set it to false for sets of many thousand images.
    """

    train_split: str = "train"
    metrics: list[str] = field(default_factory=lambda: ["miou", "f1"])
    training: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    cache: bool = True


@dataclass(frozen=True)
class MethodRow:
    """One row of the table: a method with its options and whatever is set differently for it.

    Attributes:
        method: A name of `samparser.methods.METHODS`.
        name: Key of the row in result files and in `paper`; by default the method's name.
        label: Title of the row; by default the name.
        options: Options of the method, `{"parametrization": "relative"}` for instance.
        training: Fields of `TrainSettings` that differ for this row, `coefficient_lr` for instance.
        prompts: Fields of `PromptSettings` that differ for this row, `jitter_max` for instance.
        train_images: Train on so many images, drawn by the cell's seed; not given: on all.
        trials: The learning rates that this row tries in place of `search.trials`, as many as those.
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
        trials: Learning rates to try, `[{"learning_rate": 1e-4}, ...]`; `coefficient_lr` may stand beside.
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
class Panels:
    """A figure beside the table: image, ground truth, and what some rows predict.

    Attributes:
        rows: Names of the rows to draw, from left to right.
        images: Test images of each data set, drawn by `seed` and by nothing else: scores take no part.
        seed: Of the draw.
    """

    rows: list[str]
    images: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a table, but where the data lies.

    Attributes:
        name: Name of the files that are written.
        title: Title of the written page.
        data: The data sets, one column each. None: nothing is trained, the cost of each row is counted.
        methods: The rows.
        model: SAM checkpoint: a folder, relative to the experiment file, or a hub id.
        frame: How the model takes images, see `load_sam`; not given: as its processor says.
        training: Fields of `TrainSettings` for all cells: `recipe`, `num_train_epochs`, `learning_rate`, ...
        prompts: Fields of `PromptSettings` for all cells.
        evaluation: Fields of `EvalSettings`.
        seeds: One training per row, data set and seed.
        reference: Name of the row that differences are taken to.
        also: Another data set that every final model is scored on with tight boxes: what it forgot.
        search: How learning rates are chosen; not given: they are those of `training`.
        paper: What the paper reports, in percent: `{row: {data set: {metric: value}}}`.
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
    frame: ChosenFrame | None = None
    training: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = "decoder"
    also: ScoredSource | None = None
    search: Search | None = None
    paper: dict[str, Any] = field(default_factory=dict)
    panels: Panels | None = None
    notes: tuple[str, ...] = ()
    data_root: str | None = None
    imports: tuple[str, ...] = ()
    file: Path = Path("experiment.json")

    def row(self, name: str) -> MethodRow:
        """Return the row called `name`."""
        return next(row for row in self.methods if row.name == name)

    def source(self, name: str) -> DataSource:
        """Return the data set called `name`."""
        return next(source for source in self.data if source.name == name)

    def model_path(self) -> str:
        """Return the checkpoint folder where there is one beside the experiment file; the hub id otherwise."""
        beside = self.file.parent / self.model
        return str(beside) if beside.is_dir() else self.model

    def train_settings(self, source: DataSource, row: MethodRow, **more: Any) -> TrainSettings:
        """Return a cell's settings: the experiment's, over them the data set's, the row's, and `more`."""
        return TrainSettings(**{**self.training, **source.training, **row.training, **more})

    def prompt_settings(self, source: DataSource, row: MethodRow) -> PromptSettings:
        """Return the prompts of a cell, put together like its settings."""
        return PromptSettings(**{**self.prompts, **source.prompts, **row.prompts})

    def eval_settings(self, source: DataSource, row: MethodRow) -> EvalSettings:
        """Return how a cell is scored: with the kind of prompt that it trains with, unless another is named."""
        chosen = EvalSettings(**{**self.evaluation, **source.evaluation})
        return chosen.resolved(self.prompt_settings(source, row))

    def also_eval_settings(self) -> EvalSettings:
        """Return how the other set is scored: with tight boxes, whatever the rows train with."""
        return tight(EvalSettings(**self.evaluation))

    def trials(self, row: MethodRow) -> list[dict[str, float]]:
        """Return the learning rates that a row tries; empty where nothing is searched."""
        return [] if self.search is None else (row.trials or self.search.trials)


def with_settings(experiment: Experiment, **training: Any) -> Experiment:
    """Return the experiment with other training settings in every cell, whatever data sets, rows and search say.

    Raises:
        ExperimentError: There is no such setting, or it cannot have this value.
    """
    given = check_fields(TrainSettings, training, "settings", allowed=training_fields())
    with said_where("settings"):
        TrainSettings(**given)
    search = experiment.search
    if search is not None and "num_train_epochs" in given:
        search = replace(search, epochs=None)
    return replace(
        experiment,
        search=search,
        training={**experiment.training, **given},
        data=tuple(replace(part, training={**part.training, **given}) for part in experiment.data),
        methods=tuple(replace(part, training={**part.training, **given}) for part in experiment.methods),
    )


def to_json(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as plain values, as it stands in the results."""
    content = asdict(experiment)
    del content["file"]
    return json.loads(json.dumps(content))
