"""`samparser compare`: run an experiment, every method side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from samparser._options import option
from samparser.compare import compare, load_experiment, markdown, parse_options, select, with_settings

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
    processes: int | None = option(
        "Cells to run at once, each in a process with one thread; 1 or not given: in this one. With another launcher "
        "the jobs to have under way; not given: as many as its queue takes.",
        None,
    )
    launcher: Literal["processes", "submitit", "ray"] = option(
        "What runs the cells: processes of this machine, jobs of Slurm (submitit), or a Ray cluster. For the last two "
        "the output, the data and the model have to lie on a disk that all machines share.",
        "processes",
    )
    launcher_options: list[str] | None = option(
        "What a job needs, as NAME=VALUE words, in the names of the engine: timeout_min=60 mem_gb=32 cpus_per_task=4 "
        "gpus_per_node=1 slurm_partition=gpu for submitit (cluster=local tries it out here), num_cpus=4 num_gpus=1 "
        "memory=32000000000 address=auto for ray. tries=3: how often a cell is started whose job is lost.",
        None,
    )
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
        launcher=command.launcher,
        launcher_options=parse_options(command.launcher_options or []),
        cost=command.cost,
        say=lambda line: print(line, flush=True),
    )
    print(markdown(report))
    print(f"written: {Path(command.output) / experiment.name}.md and .json")
    return 0
