"""One training step of every SAM family at its full size, from pixels and from cached features, on random weights.

    python examples/full_size.py                                  # every family: ten minutes on one free core, 6 GB
    python examples/full_size.py --family sam2.1-hiera-tiny sam3-tracker
    python examples/full_size.py --config path/to/a/config.json   # of a size of one's own

Nothing is downloaded: models are built from the configs of the published checkpoints, which say what a step costs. Each
runs in a process of its own: coefficients of the neck and the mask decoder are trained on one real image and one box,
once from pixels and several times from what the cache keeps of it in float16. Times are processor time.
EdgeTAM needs timm.
"""

import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.measure import machine, table
from benchmarks.published import PUBLISHED, random_model
from benchmarks.steps import coefficients_and_decoder
from torch import Tensor, nn
from transformers import AutoConfig, HfArgumentParser

from samparser.data import DataSettings, Sample, open_dataset
from samparser.features import FeatureCache
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam import count_coefficients, default_processor, family_of
from samparser.sam.changes import frozen_before_neck
from samparser.scoring import segmentation_loss

ASSETS = Path(__file__).parent / "assets"
GIB, MB = 2**30, 1e6


@dataclass(frozen=True)
class Arguments:
    """What to run, and on what."""

    family: list[str] = field(
        default_factory=list, metadata={"help": f"Published sizes: {', '.join(PUBLISHED)}; all of them if none."}
    )
    config: str | None = field(default=None, metadata={"help": "Run the model of this config.json instead."})
    data: str = field(default=str(ASSETS / "nuclei"), metadata={"help": "Data set whose first image is trained on."})
    split: str = field(default="train", metadata={"help": "Its part: train, val or test."})
    rounds: int = field(default=5, metadata={"help": "Steps from cached features, of which the median counts."})
    threads: int = field(
        default=1, metadata={"help": "Threads of torch. With more than one, those that wait count in the times too."}
    )
    alone: bool = field(
        default=False, metadata={"help": "Run the one model in this process and print its figures as JSON."}
    )


def main(arguments: Arguments) -> None:
    """Run each model in a process of its own and print the table."""
    names = ["config"] if arguments.config else arguments.family or list(PUBLISHED)
    if unknown := sorted(set(names) - {*PUBLISHED, "config"}):
        raise ValueError(f"There is no size {', '.join(unknown)}; there are {', '.join(PUBLISHED)}.")
    torch.set_num_threads(arguments.threads)
    if arguments.alone:
        print(json.dumps(figures(names[0], arguments)))
        return
    found = {name: in_a_process(name, arguments) for name in names}
    print(f"{machine()}\n")
    rows = [cells(name, run) for name, run in found.items() if "missing" not in run]
    print(table(HEADER, rows))
    for name, run in found.items():
        if "missing" in run:
            print(f"\n{name} was left out: {run['missing']}")


def in_a_process(name: str, arguments: Arguments) -> dict[str, Any]:
    """Run one model in a process of its own, whose peak of memory is the model's.

    Raises:
        subprocess.CalledProcessError: It failed; what it printed says why.
    """
    print(f"running {name}", file=sys.stderr, flush=True)
    which = ("--config", arguments.config) if arguments.config else ("--family", name)
    how = ("--rounds", arguments.rounds, "--threads", arguments.threads, "--alone", True)
    words = [*which, "--data", arguments.data, "--split", arguments.split, *how]
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def figures(name: str, arguments: Arguments) -> dict[str, Any]:
    """Return what one model costs, or what is missing to build it."""
    config = AutoConfig.from_pretrained(arguments.config) if arguments.config else PUBLISHED[name]()
    (sample, *_) = open_dataset(DataSettings(data=arguments.data), arguments.split)
    try:
        model = random_model(config)
    except ImportError as error:
        return {"missing": " ".join(str(error).split())}
    return measure(model, sample, arguments.rounds)


def measure(model: nn.Module, sample: Sample, rounds: int) -> dict[str, Any]:
    """Train a model for a step from pixels and for some steps from features.

    Args:
        model: A plain model of a family.
        sample: The image, with at least one instance, whose box is the prompt.
        rounds: How many steps from features.
    """
    family, processor = family_of(model), default_processor(model)
    parameters, coefficients = sum(weight.numel() for weight in model.parameters()), count_coefficients(model)
    tuned = coefficients_and_decoder(model).train()
    for part in frozen_before_neck(tuned):
        part.eval()
    trained = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items() if is_coefficient(name)}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-4)

    def step(batch: dict[str, Any]) -> float:
        optimizer.zero_grad()
        value = loss(tuned(pixel_values=batch["pixel_values"], **prompts(batch)).pred_masks, batch)
        value.backward()
        optimizer.step()
        return value.item()

    batch = one_box(sample, processor)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, tuned, processor)
        features, encoding = timed(lambda: cache.encode(sample.image))
        embedded = family.embed(tuned, tuple(tensor[None] for tensor in features))
        from_features = loss(family.decode(tuned, embedded, prompts(batch, only=True))[0], batch).item()
        del embedded
        from_pixels, pixel_step = timed(lambda: step(batch))
        moved = sum(int((trained[name] != old).sum()) for name, old in before.items())
        peak = peak_memory()
        cache.fill([sample], progress=False)
        with cache.feeding() as fed:
            batch = one_box(sample, fed)
            cached = [timed(lambda: step(batch)) for _ in range(rounds + 1)][1:]
    return {
        "parameters": parameters,
        "coefficients": coefficients,
        "coefficients that moved": moved,
        "peak bytes": peak,
        "feature bytes": cache.store.entry_bytes,
        "encoding seconds": encoding,
        "step from pixels seconds": pixel_step,
        "step from features seconds": statistics.median(seconds for _, seconds in cached),
        "loss from pixels": from_pixels,
        "loss from float32 features": from_features,
        "last loss from the cache": cached[-1][0],
    }


HEADER = [
    "model",
    "parameters",
    "coefficients, moved",
    "loss, finite",
    "the same from features",
    "peak memory",
    "step from pixels",
    "step from features",
    "ratio",
    "features on disk",
]


def cells(name: str, run: dict[str, Any]) -> list[str]:
    """One row of the table."""
    pixels, features = run["step from pixels seconds"], run["step from features seconds"]
    losses = [run["loss from pixels"], run["last loss from the cache"]]
    return [
        name,
        f"{run['parameters'] / 1e6:.1f} M",
        f"{run['coefficients']:,}, {run['coefficients that moved']:,}",
        f"{losses[0]:.4f}, {'yes' if all(map(math.isfinite, losses)) else 'NO'}",
        "bit for bit" if run["loss from float32 features"] == losses[0] else f"{run['loss from float32 features']:.7g}",
        f"{run['peak bytes'] / GIB:.1f} GiB",
        f"{pixels:.3g} s",
        f"{features:.3g} s",
        f"1/{pixels / features:.0f}",
        f"{run['feature bytes'] / MB:.1f} MB",
    ]


def one_box(sample: Sample, processor: Any) -> dict[str, Any]:
    """A batch of one image and the box of one of its instances, as the processor, or that of a cache, makes it."""
    settings = PromptSettings(jitter_max=0.0, max_instances=1)
    return collate([PromptedDataset([sample], processor, settings)[0]])


def prompts(batch: dict[str, Any], *, only: bool = False) -> dict[str, Any]:
    """What the model takes beside the image; `only` the prompts themselves."""
    boxes = {"input_boxes": batch["input_boxes"]}
    return boxes if only else boxes | {"multimask_output": False}


def loss(masks: Tensor, batch: dict[str, Any]) -> Tensor:
    """The loss of training, on logits (1, 1, 1, h, w)."""
    valid = batch["instance_valid"], batch["pixel_valid"]
    return segmentation_loss(masks[:, :, 0], batch["masks"], *valid, lambda_focal=0.5).total


def is_coefficient(name: str) -> bool:
    """Whether a trained tensor holds coefficients."""
    return "svd_coefficient" in name


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a run gives, and its seconds of processor time, which other programs on the machine hardly change."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def peak_memory() -> int:
    """The most bytes of memory that this process has held so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else 1024 * most


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses(args=sys.argv[1:]))
