"""What samparser costs, as ratios: families, layers, training steps, cached training, start-up, many adapters, data.

    python examples/benchmark.py                    # layers of ViT-B's sizes, a smaller SAM: some minutes
    python examples/benchmark.py --full             # SAM ViT-B at 1024 pixels, random weights: up to an hour
    python examples/benchmark.py --full --device cuda
    python examples/benchmark.py --quick            # a tiny SAM, to see that everything runs
    python examples/benchmark.py --only layers steps --output benchmark.md

All candidates of a table run in turn in one process; a ratio is the median over the rounds of candidate over baseline
in the same round, with quartiles in parentheses. With ``--threads 1`` the time is the processor time of the process,
which other programs on the machine hardly change. Weights are random: they do not change what a step costs.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from benchmarks.batches import measure_batches
from benchmarks.data import COCO, TENTH, measure_data
from benchmarks.data import QUICK as FEW
from benchmarks.families import measure_families
from benchmarks.filling import measure_filling, measure_reading
from benchmarks.layers import measure_evaluation, measure_layers, measure_mixed_batch, vit_b_layers
from benchmarks.lean import measure_lean
from benchmarks.many import measure_many_adapters
from benchmarks.measure import machine, use_device
from benchmarks.models import FULL, MEDIUM, QUICK, make_sam
from benchmarks.profile import measure_where_time_goes
from benchmarks.published import PUBLISHED
from benchmarks.scale import measure_scale
from benchmarks.startup import measure_startup
from benchmarks.steps import measure_steps
from benchmarks.transposed import LAYERS, SMALL, measure_transposed
from transformers import HfArgumentParser


@dataclass(frozen=True)
class Arguments:
    """What to measure, and how long."""

    full: bool = field(default=False, metadata={"help": "Use SAM ViT-B at 1024 pixels."})
    quick: bool = field(default=False, metadata={"help": "Use a tiny SAM and two rounds: a test, not a measurement."})
    only: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parts: families, layers, transposed, evaluation, mixed, steps, batches, lean, startup, many, "
            "scale, data, filling, reading, profile; all if none."
        },
    )
    rounds: int | None = field(default=None, metadata={"help": "Rounds of each comparison."})
    step_rounds: int | None = field(default=None, metadata={"help": "Rounds of whole training steps."})
    threads: int | None = field(default=None, metadata={"help": "Threads of torch; by default torch's choice."})
    device: str = field(default="cpu", metadata={"help": "Where to measure: cpu, cuda, cuda:1."})
    entries: int | None = field(default=None, metadata={"help": "Entries of the part reading; 10,000 if not given."})
    output: str | None = field(default=None, metadata={"help": "File for the tables (Markdown); parts are appended."})
    figure: str | None = field(default=None, metadata={"help": "PNG for the figure of the part scale."})


def main(arguments: Arguments) -> None:
    """Runs the parts and prints a section for each as soon as it is measured."""
    use_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else FULL if arguments.full else MEDIUM
    side = 8 if arguments.quick else 64
    layers = vit_b_layers(48 if arguments.quick else 768)
    rounds = arguments.rounds or (2 if arguments.quick else 9)
    step_rounds = arguments.step_rounds or (2 if arguments.quick else 3)
    figure = None if arguments.figure is None else Path(arguments.figure)
    counted = {"sam-vit-base": PUBLISHED["sam-vit-base"]} if arguments.quick else PUBLISHED
    # Of each architecture of a decoder the smallest model; what is before the neck does not run.
    names = ("sam-vit-base", "sam-hq-vit-base", "sam2.1-hiera-tiny", "sam3-tracker")
    lean = {"tiny": lambda: make_sam(QUICK).config} if arguments.quick else {name: PUBLISHED[name] for name in names}
    sides, batches = ([64], [1, 2]) if arguments.quick else ([256, 512, 1024], [1, 2, 4, 8])
    parts: dict[str, tuple[str, Callable[[], str]]] = {
        "families": ("Every family, counted", lambda: measure_families(counted)),
        "layers": ("One layer", lambda: measure_layers(layers, side, rounds)),
        "transposed": (
            "Transposed convolutions",
            lambda: measure_transposed(SMALL if arguments.quick else LAYERS, rounds),
        ),
        "evaluation": ("One layer in evaluation", lambda: measure_evaluation(layers, side, rounds)),
        "mixed": ("A batch of several adapters", lambda: measure_mixed_batch(layers, side, rounds)),
        "steps": ("A training step", lambda: measure_steps(size, step_rounds, main_methods=arguments.full)),
        "batches": ("Several cached images a step", lambda: measure_batches(size, sides, step_rounds, batches)),
        "lean": ("The lean decoder in every family", lambda: measure_lean(lean, step_rounds)),
        "startup": ("Start-up", lambda: measure_startup(size, rounds)),
        "many": ("One image, many adapters", lambda: measure_many_adapters(size, step_rounds, quick=arguments.quick)),
        "scale": ("Scale", lambda: measure_scale(size, rounds, figure, quick=arguments.quick)),
        "data": (
            "Data at COCO's size",
            lambda: measure_data(step_rounds, FEW if arguments.quick else COCO if arguments.full else TENTH),
        ),
        "filling": ("Filling a cache", lambda: measure_filling(size, step_rounds, quick=arguments.quick)),
        "reading": (
            "Reading many entries",
            lambda: measure_reading(arguments.entries or (50 if arguments.quick else 10_000), quick=arguments.quick),
        ),
        "profile": ("Where a cached step spends its time", lambda: measure_where_time_goes(size, step_rounds)),
    }
    unknown = sorted(set(arguments.only) - parts.keys())
    if unknown:
        raise ValueError(f"There is no part {', '.join(unknown)}; there are {', '.join(parts)}.")
    say(f"Measured on {machine()}.", arguments.output)
    for name, (title, measure) in parts.items():
        if not arguments.only or name in arguments.only:
            say(f"### {title}\n\n{measure()}", arguments.output)


def say(text: str, output: str | None) -> None:
    """Prints a section, and appends it to the output file."""
    print(text + "\n", flush=True)
    if output is not None:
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(text + "\n\n")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses(args=sys.argv[1:]))
