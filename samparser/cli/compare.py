"""`samparser compare`: run an experiment, every method side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samparser._options import option
from samparser.compare import compare, load_experiment, markdown, select, with_settings

from .parser import SettingsParser
from .shared import refuse_less_than_one


@dataclass(frozen=True)
class CompareCommand:
    """Run what is missing of an experiment (methods, data sets, seeds), then write its table."""

    experiment: str = option("Experiment file (JSON); docs/compare.md states its format.")
    output: str = option("Folder for results, run folders, cached features and the table.")
    data_root: str | None = option(
        "Folder that holds the experiment's data sets; not given: the one that the experiment names, if any.", None
    )
    data: list[str] | None = option("Only these data sets of the experiment, by name.", None)
    rows: list[str] | None = option("Only these rows of the experiment, by name, and its reference.", None)
    seeds: int | None = option("So many seeds; not given: those that the experiment lists.", None)
    limit: int | None = option("Use only so many images of each split: for a trial, in a folder of its own.", None)
    epochs: float | None = option("Passes over the training images in every cell: for a trial.", None)
    processes: int = option("Cells to run at once, each in a process with one thread; 1: in this one.", 1)
    cost: bool = option("Also count and measure what a step of each row costs.", True)

    def __post_init__(self) -> None:
        refuse_less_than_one(self, "seeds", "limit", "processes")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "compare",
        {"what to compare": CompareCommand},
        ("experiment",),
        example="samparser compare examples/compare/experiments/mini-nuclei.json --output compare/mini --seeds 1",
    )


def run(arguments: Sequence[str]) -> int:
    """Run the missing cells, print the table, and say where it is."""
    (command,) = parser().parse(arguments)
    experiment = load_experiment(command.experiment)
    experiment = select(experiment, data=command.data, rows=command.rows, seeds=command.seeds)
    if command.epochs is not None:
        experiment = with_settings(experiment, num_train_epochs=command.epochs)
    report = compare(
        experiment,
        output=command.output,
        data_root=command.data_root,
        limit=command.limit,
        processes=command.processes,
        cost=command.cost,
        say=lambda line: print(line, flush=True),
    )
    print(markdown(report))
    print(f"written: {Path(command.output) / experiment.name}.md and .json")
    return 0
