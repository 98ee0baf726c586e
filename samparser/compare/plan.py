"""The cells of an experiment: what has to be trained and scored, and under which name its result stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from samparser.methods import build
from samparser.methods.registry import with_placeholders

from .experiment import Experiment, MethodRow
from .strict import ExperimentError

Kind = Literal["once", "trial", "seed"]


@dataclass(frozen=True)
class Cell:
    """One training and its scores, or the scores of a row that trains nothing.

    `kind` is `"trial"` for the training number `number` of the search of learning rates, `"seed"` for the one
    with the seed `number`, and `"once"` for rows that train nothing, which need no seeds.
    """

    data: str
    row: str
    kind: Kind
    number: int = 0

    @property
    def name(self) -> str:
        """Name of its result file, without suffix."""
        return f"{self.data}--{self.row}--{self.kind}" + ("" if self.kind == "once" else str(self.number))

    def __str__(self) -> str:
        words = {"once": "", "trial": f", trial {self.number + 1}", "seed": f", seed {self.number}"}
        return f"{self.data}, {self.row}{words[self.kind]}"


def applied_without_weights(row: MethodRow, base: nn.Module) -> nn.Module:
    """Apply a row's method to a model without weights of the base's configuration.

    Raises:
        ExperimentError: The method cannot be applied with the row's options.
    """
    with torch.device("meta"):
        empty = type(base)(base.config)
    try:
        return with_placeholders(build(row.method, empty, **row.options))
    except Exception as error:
        raise ExperimentError(
            f"{row.name}: method {row.method!r} cannot be applied with the options {row.options}: {error}"
        ) from error


def trains_nothing(row: MethodRow, base: nn.Module) -> bool:
    """Tell whether a row's method leaves every parameter of the model frozen; raises as above."""
    return not any(parameter.requires_grad for parameter in applied_without_weights(row, base).parameters())


def trial_cells(experiment: Experiment, data: str, row: MethodRow) -> list[Cell]:
    """Return the trials of a row on a data set; none where there is nothing to choose from."""
    trials = experiment.trials(row)
    return [Cell(data, row.name, "trial", number) for number in range(len(trials))] if len(trials) > 1 else []


def seed_cells(experiment: Experiment, data: str, row: MethodRow) -> list[Cell]:
    """Return the trainings that make up the row's numbers on a data set."""
    return [Cell(data, row.name, "seed", seed) for seed in experiment.seeds]
