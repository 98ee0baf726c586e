"""What the cells of a comparison share: the base model and the data sets, each opened once in a process."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from samparser._hashing import sha256_of
from samparser.data import SegmentationDataset, open_dataset
from samparser.data.splits import volume_of
from samparser.methods import METHODS, build
from samparser.methods.base_check import fingerprint
from samparser.sam import load_sam
from samparser.sam.loading import in_float32
from samparser.training import TrainSettings
from samparser.training.settings import MAY_DIFFER, OF_A_CACHE

from .experiment import DataSource, Experiment, MethodRow, ScoredSource
from .plan import Cell
from .strict import ExperimentError

# Up to so many images are read once, so that a bad file or an image without instance is left out of both splits.
_SCANNED_UP_TO = 2000
# What does not change a result, or is recorded with it under another name.
_NOT_COMPARED = MAY_DIFFER | {
    *("cache_projected", "recipe", "score_before", "eval_strategy", "eval_steps", "eval_limit"),
    *("metric_for_best_model", "load_best_model_at_end", "early_stopping_patience"),
}


def require_data(sources: Sequence[ScoredSource], root: Path) -> None:
    """Make sure that every data set is there.

    Raises:
        ExperimentError: Files are missing; the message names each set, what was looked for, and where it comes from.
    """
    missing = []
    for source in sources:
        folder = root / source.folder
        lacking = [pattern for pattern in source.files if next(folder.glob(pattern), None) is None]
        if lacking:
            state = "lacks" if folder.is_dir() else "does not exist; it must hold"
            missing.append(f"  {source.name}: {folder} {state} {', '.join(lacking)}\n    from {source.source}")
    if missing:
        raise ExperimentError(
            f"{len(missing)} of {len(sources)} data sets are not in the data root {root}:\n" + "\n".join(missing) + "\n"
            "Put them there, give another --data-root, or name the sets that are there with --data."
        )


@dataclass
class Workspace:
    """Model and data of an experiment.

    Attributes:
        experiment: What to run.
        root: The data root.
        output: Folder of the comparison.
        limit: Use at most so many images of each split; None: all.
    """

    experiment: Experiment
    root: Path
    output: Path
    limit: int | None = None

    def __post_init__(self) -> None:
        # The base model stays as it is; cells tune copies.
        base, self.processor = load_sam(self.experiment.model_path(), frame=self.experiment.frame)
        self.base = in_float32(base)
        self._opened: dict[str, tuple[SegmentationDataset, SegmentationDataset]] = {}

    def new_model(self) -> nn.Module:
        """Return a copy of the base model to tune."""
        return copy.deepcopy(self.base)

    def tuned(self, row: MethodRow) -> nn.Module:
        """Return a copy of the base model with a row's method applied."""
        return build(row.method, self.new_model(), **row.options)

    @cached_property
    def weights(self) -> str:
        """A hash of all weights of the base model."""
        hashes = fingerprint(self.base.state_dict())
        return sha256_of(json.dumps(hashes, sort_keys=True))[:16]

    def model_settings(self) -> dict[str, str]:
        """Return what tells the base model from others, as plain values."""
        frame = {} if self.experiment.frame is None else {"frame": self.experiment.frame}
        return {"name": self.experiment.model, "weights": self.weights, **frame}

    @cached_property
    def also_set(self) -> SegmentationDataset | None:
        """The images of the other set that final models are scored on; None where the experiment names none.

        Raises:
            DataError: They cannot be read as the experiment says.
        """
        also = self.experiment.also
        return None if also is None else _scanned(open_dataset(also.settings(self.root, self.limit), also.test_split))

    def sets(self, source: DataSource) -> tuple[SegmentationDataset, SegmentationDataset]:
        """Return the training and the test images of a data set.

        Raises:
            DataError: They cannot be read as the experiment says.
        """
        if source.name not in self._opened:
            settings = source.settings(self.root, self.limit)
            train_set, test_set = (open_dataset(settings, part) for part in (source.train_split, source.test_split))
            self._opened[source.name] = (_scanned(train_set), _scanned(test_set))
        return self._opened[source.name]

    def sets_of(self, cell: Cell) -> tuple[Any, Any]:
        """Return the images that a cell trains on and is scored on. Trials see no test image."""
        source, row = self.experiment.source(cell.data), self.experiment.row(cell.row)
        train_set, test_set = self.sets(source)
        search = self.experiment.search
        seed = cell.number
        if cell.kind == "trial" and search is not None:
            seed = search.seed
            by_volume = source.options.get("split_volumes", True)
            kept, held_out = hold_out(train_set.names, search.held_out, seed, by_volume=by_volume)
            if not kept:
                raise ExperimentError(
                    f"{source.name} has {len(train_set)} training images, too few to hold out {search.held_out:.0%} of "
                    "them to choose learning rates."
                )
            train_set, test_set = train_set.subset(kept), train_set.subset(held_out)
        if row.train_images is not None:
            # A trial with few images of everything is no reason to refuse a row.
            count = row.train_images if self.limit is None else min(row.train_images, len(train_set))
            train_set = _some(train_set, count, seed, source)
        return train_set, test_set

    def cached(self, cell: Cell) -> bool:
        """Tell whether a cell trains and is scored from cached features."""
        source, row = self.experiment.source(cell.data), self.experiment.row(cell.row)
        return source.cache and not METHODS[row.method].trains_upstream

    def settings_of(self, cell: Cell, rates: Mapping[str, float]) -> dict[str, Any]:
        """Return all that decides the result of a cell, as plain values; results are comparable where it is equal."""
        experiment = self.experiment
        source, row = experiment.source(cell.data), experiment.row(cell.row)
        train_set, test_set = self.sets_of(cell)
        training = train_settings_of(experiment, source, row, cell, rates).recorded()
        settings: dict[str, Any] = {
            "model": self.model_settings(),
            "method": row.method,
            "options": {**METHODS[row.method].options, **row.options},
            "data": {
                "folder": source.folder,
                "layout": source.layout,
                **source.options,
                "limit": self.limit,
                "test_split": source.test_split,
                "test_images": _names(test_set),
            },
            "cached": self.cached(cell),
            "evaluation": asdict(experiment.eval_settings(source, row)),
        }
        if experiment.also is not None and cell.kind != "trial":
            settings["also"] = also_settings(self)
        if cell.kind != "once":
            settings["data"] |= {"train_split": source.train_split, "train_images": _names(train_set)}
            settings["training"] = {name: value for name, value in training.items() if name not in _NOT_COMPARED}
            settings["prompts"] = asdict(experiment.prompt_settings(source, row))
        return json.loads(json.dumps(settings))


def also_settings(workspace: Workspace) -> dict[str, Any]:
    """Return all that decides the scores of a model on the other set, as plain values."""
    also, experiment = workspace.experiment.also, workspace.experiment
    assert also is not None
    assert workspace.also_set is not None
    settings = {
        "folder": also.folder,
        "layout": also.layout,
        **also.options,
        "limit": workspace.limit,
        "test_split": also.test_split,
        "test_images": _names(workspace.also_set),
        "evaluation": asdict(experiment.also_eval_settings()),
    }
    return dict(json.loads(json.dumps(settings)))


def train_settings_of(
    experiment: Experiment, source: DataSource, row: MethodRow, cell: Cell, rates: Mapping[str, float], **fields: Any
) -> TrainSettings:
    """Return the training settings of a cell, with the rates that were chosen for it or that it tries, and others."""
    more: dict[str, Any] = {**fields, **rates, "eval_strategy": "no", "report_to": "none", "seed": cell.number}
    # A score of the test images before the first step is what the row that trains nothing gives.
    more["score_before"] = False
    if fields.get("cache") is None:
        more |= OF_A_CACHE
    search = experiment.search
    if cell.kind == "trial" and search is not None:
        more["seed"] = search.seed
        if search.epochs is not None:
            more["num_train_epochs"] = search.epochs
    return experiment.train_settings(source, row, **more)


def hold_out(names: Sequence[str], part: float, seed: int, *, by_volume: bool = False) -> tuple[list[int], list[int]]:
    """Divide images into those to go on training with and those set aside: at least one, drawn by the seed.

    Args:
        names: Names of the images.
        part: Part of them to set aside.
        seed: Of the draw.
        by_volume: Set whole CT volumes aside and not single slices.

    Returns:
        Indices of either.
    """
    unit_of = [volume_of(name) if by_volume else name for name in names]
    units = sorted(set(unit_of))
    order = np.random.default_rng([seed, 3]).permutation(len(units))
    chosen = {units[i] for i in order[: max(1, round(part * len(units)))]}
    kept = [index for index, unit in enumerate(unit_of) if unit not in chosen]
    return kept, [index for index, unit in enumerate(unit_of) if unit in chosen]


def _scanned(dataset: SegmentationDataset) -> SegmentationDataset:
    return dataset.scanned() if len(dataset) <= _SCANNED_UP_TO else dataset


def _some(dataset: SegmentationDataset, count: int, seed: int, source: DataSource) -> SegmentationDataset:
    if count > len(dataset):
        raise ExperimentError(
            f"A row trains on {count} images, but {source.name} has {len(dataset)} to train on"
            " (in trials, after some are held out)."
        )
    chosen = np.random.default_rng([seed, 2]).permutation(len(dataset))[:count]
    return dataset.subset(sorted(chosen.tolist()))


def _names(dataset: SegmentationDataset) -> str:
    return f"{len(dataset)} images, names {sha256_of(chr(10).join(dataset.names))[:16]}"
