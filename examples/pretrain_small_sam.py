"""Train a small SAM from nothing: the checkpoint in ``examples/assets/small-sam``, or a larger one of your own.

    python examples/pretrain_small_sam.py --photos coco128 --cutouts stamps --output runs/small-sam
    torchrun --nproc-per-node 2 examples/pretrain_small_sam.py --photos coco128 --cutouts stamps --output runs/small-sam

The first line trains in one process, on a GPU if there is one; the second in two, which on a CPU is quicker than two
threads. It draws synthetic scenes, trains on them and on the photos, if given, and writes to ``--output``:

    recipe.json         all settings
    log.jsonl           loss, and IoU on held-out scenes and photos beside the step
    state.safetensors   what ``--resume`` goes on from, to the bit
    checkpoint/         for ``SamModel.from_pretrained`` and ``SamProcessor.from_pretrained``

Photos are a folder in COCO's layout: ``train2017/*.jpg`` and ``annotations/instances_train2017.json`` (coco128 holds 96
of them). Cut-outs are PNGs of objects on a transparent ground. ``--recipe`` names a JSON with other settings, the size
of the model among them; ``docs/small-sam.md`` says what the training does, how long it takes, and what a larger one
needs.
"""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from pretraining.checkpoint import export
from pretraining.cutouts import load_cutouts
from pretraining.evaluation import HeldOut, baselines, hold_out
from pretraining.recipe import Recipe
from pretraining.samples import Photo, load_photos
from pretraining.scene_store import stored_scenes
from pretraining.scenes import Scene
from pretraining.state import steps_done
from pretraining.training import Trainer
from transformers import HfArgumentParser


@dataclass(frozen=True)
class Arguments:
    """The command line."""

    output: str = field(metadata={"help": "Folder for recipe, log, state and checkpoint."})
    photos: str | None = field(
        default=None,
        metadata={
            "help": "Folder in COCO's layout with train2017 and its annotations. Without it, the model has seen "
            "drawings only."
        },
    )
    cutouts: str | None = field(
        default=None,
        metadata={
            "help": "Folder of PNGs, at any depth, each an object on a transparent ground: two scenes in five are made "
            "of them."
        },
    )
    recipe: str | None = field(default=None, metadata={"help": "JSON of settings that differ from the defaults."})
    resume: bool = field(default=False, metadata={"help": "Go on from the state in --output."})
    until: int | None = field(default=None, metadata={"help": "Stop at this step, to go on later."})
    evaluate_every: int = field(default=500, metadata={"help": "Steps between scores on the held-out pictures."})
    save_every: int = field(default=250, metadata={"help": "Steps between saved states: what an interruption costs."})
    device: str | None = field(default=None, metadata={"help": "cpu or cuda; by default cuda where there is one."})
    workers: int = field(default=0, metadata={"help": "Processes that prepare samples; a GPU needs most of the cores."})
    scene_processes: int = field(default=2, metadata={"help": "Processes that draw the scenes, once."})


def main(arguments: Arguments) -> None:
    """Draw scenes, train, and export the averaged weights."""
    recipe = Recipe.load(Path(arguments.recipe)) if arguments.recipe else Recipe()
    output = Path(arguments.output)
    prepare(output, recipe, resume=arguments.resume)
    photos, held_out_photos = split_photos(recipe, arguments.photos)
    cutouts = load_cutouts(Path(arguments.cutouts)) if arguments.cutouts else []
    scenes, held_out_scenes = draw_scenes(recipe, output, photos, cutouts, arguments.scene_processes)
    size = recipe.architecture.image_size
    held_out = {"synthetic": whole_pictures(held_out_scenes, size), "photos": whole_pictures(held_out_photos, size)}
    held_out = {name: pictures for name, pictures in held_out.items() if pictures}

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(recipe, scenes, photos, held_out, output, device=device, workers=arguments.workers)
    if arguments.resume:
        trainer.resume()
    say(
        f"{sum(value.numel() for value in trainer.model.parameters()) / 1e6:.2f} M parameters on {device}, "
        f"{len(scenes)} scenes, {len(cutouts)} cut-outs, {len(photos)} photos, steps {trainer.step} to "
        f"{arguments.until or recipe.steps}"
    )
    for name, pictures in held_out.items():
        scores = baselines(pictures)
        say(
            f"held-out {name}: {len(pictures)} pictures; IoU of the box {scores['box']:.3f}, "
            f"of the ellipse in it {scores['ellipse']:.3f}"
        )

    started = time.monotonic()
    trainer.train(until=arguments.until, evaluate_every=arguments.evaluate_every, save_every=arguments.save_every)
    if trainer.rank == 0:
        with trainer.averaged() as model:
            export(model, recipe.architecture, output / "checkpoint")
        say(
            f"{(time.monotonic() - started) / 60:.1f} minutes; {output / 'checkpoint'} holds the weights of step "
            f"{trainer.step}"
        )


def prepare(output: Path, recipe: Recipe, *, resume: bool) -> None:
    """Refuse to overwrite a training, or to resume it by settings that would have made it another one."""
    state, settings = output / "state.safetensors", output / "recipe.json"
    if not resume:
        if state.exists():
            raise FileExistsError(
                f"{output} holds a training of {steps_done(state)} steps. Add --resume to go on with it, or name "
                f"another --output."
            )
    elif not state.exists():
        raise FileNotFoundError(f"{state} does not exist: there is nothing to resume. Leave out --resume to begin.")
    else:
        steps = steps_done(state)
        if names := Recipe.load(settings).differences(recipe, steps):
            raise ValueError(
                f"The first {steps} steps in {output} were trained with other settings: {', '.join(names)} differ from "
                f"{settings}. Resume with that recipe (what only later steps notice may change), or begin in another "
                f"folder."
            )
    output.mkdir(parents=True, exist_ok=True)
    if is_first():
        settings.write_text(recipe.to_json())


def split_photos(recipe: Recipe, folder: str | None) -> tuple[list[Photo], list[Photo]]:
    """Photos to train on and photos to score on, by the recipe's seed."""
    photos = load_photos(Path(folder), "train2017") if folder else []
    order = np.random.default_rng(recipe.seed).permutation(len(photos))
    chosen = [photos[i] for i in order]
    return chosen[recipe.held_out_photos :], chosen[: recipe.held_out_photos]


def draw_scenes(
    recipe: Recipe, output: Path, photos: list[Photo], cutouts: list[np.ndarray], processes: int
) -> tuple[list[Scene], list[Scene]]:
    """Scenes to train on and scenes to score on; the first process draws them while the others wait."""
    textures = [photo.image for photo in photos]
    count = recipe.scenes + recipe.held_out_scenes
    if is_first():
        stored_scenes(output, recipe.seed, count, textures, cutouts, processes)
    if dist.is_initialized():
        dist.barrier()
    scenes = stored_scenes(output, recipe.seed, count, textures, cutouts)
    return scenes[: recipe.scenes], scenes[recipe.scenes :]


def whole_pictures(sources: list[Scene] | list[Photo], size: int) -> list[HeldOut]:
    """Each source with objects as one picture to score."""
    pictures = (hold_out(source, size, seed=0) for source in sources)
    return [picture for picture in pictures if picture is not None]


def is_first() -> bool:
    """Whether this is the process that writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def say(line: str) -> None:
    """Print once, however many processes there are."""
    if is_first():
        print(line, flush=True)


if __name__ == "__main__":
    (parsed,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    if "WORLD_SIZE" in os.environ:  # set by torchrun
        dist.init_process_group("gloo", timeout=datetime.timedelta(hours=3))
    try:
        main(parsed)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
