"""What several verbs do alike: texts of options, the folder for results, the device, speaking once."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from samparser._files import no_folder
from samparser._options import option
from samparser._words import count
from samparser.methods import load_model
from samparser.sam.frame_choice import ChosenFrame

MODEL = "A SAM checkpoint (base or merged) or an adapter: a local folder, or a name on the Hugging Face hub."
FRAME = (
    "How the model takes images, where no processor beside it says so or that one is not what it was trained with: "
    "padded, as SAM does; squashed, stretched to a square; medsam, squashed and scaled from the darkest to the "
    "brightest value. Kept with an adapter, which knows it from then on. Not given: as its processor says."
)
DEVICE = "auto: a GPU where there is one; cpu: never a GPU."

# Up to so many images are read once before a run, so that one bad file is left out rather than stops the run later.
_SCANNED_UP_TO = 200
_NAMED = 5


@dataclass(frozen=True)
class LoadSettings:
    """How a model takes images, how an adapter is put on its base, and what is compared first."""

    base: str | None = option(
        "Base model of the adapter: a folder, or a name on the hub, which is fetched. Not given: the one that the "
        "adapter names, if it is on this machine; nothing is fetched because an adapter asks for it.",
        None,
    )
    frame: ChosenFrame | None = option(FRAME, None)
    check_base: bool = option(
        "Refuse a base whose weights are not those of the training. With false it is used all the same, at the price "
        "of masks that nobody has validated; another architecture is refused either way.",
        True,
    )
    check_weights: bool = option(
        "Refuse trained weights that are not those that were saved. With false they are used all the same: for files "
        "that were changed on purpose.",
        True,
    )

    def load(self, path: str) -> tuple[Any, Any]:
        """Return the model and its processor; see `samparser.methods.load_model`."""
        return load_model(
            path, self.base, frame=self.frame, check_base=self.check_base, check_weights=self.check_weights
        )


def refuse_less_than_one(command: Any, *names: str) -> None:
    """Refuse numbers of things that are below 1, before anything is loaded; None means not given.

    Raises:
        ValueError: A number is; the message names its option.
    """
    for name in names:
        value = getattr(command, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1.")


def first_process() -> bool:
    """Whether this is the first of the processes that `accelerate launch` starts."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: object) -> None:
    """Print in the first process only."""
    if first_process():
        print(text, flush=True)


def open_split(data: Any, split: str, title: str | None = None) -> Any:
    """Open a split, without the images of a small set that do not open, and print counts and what is left out.

    Args:
        data: `DataSettings`.
        split: The split's name.
        title: What it is called in what is printed; not given: by its name.
    """
    from samparser.data import open_dataset  # needs the extra packages, which push and merge do without

    dataset = open_dataset(data, split)
    if not data.scan and len(dataset) <= _SCANNED_UP_TO:
        dataset = open_dataset(replace(data, scan=True), split)
    images, entries = count(len(dataset), "image"), count(len(dataset.skipped), "entry", "entries")
    say(f"{title or split}: {images} of layout {dataset.layout}, {entries} skipped")
    for skip in dataset.skipped[:_NAMED]:
        say(f"  skipped {skip.where}: {skip.why}")
    if len(dataset.skipped) > _NAMED:
        say("  ... `samparser data check` counts all reasons")
    return dataset


def on_device(model: Any, device: str) -> Any:
    """Return the model on this process's GPU, where there is one and `device` allows it."""
    if device == "cpu" or not torch.accelerator.is_available():
        return model
    from accelerate import PartialState

    return model.to(PartialState().device)


def output_folder(path: str) -> Path:
    """Return the folder that results go to, looked at before the work begins rather than after it.

    Raises:
        ValueError: The path is a file, lies below one, or is a link to what is not there.
    """
    if reason := no_folder(path):
        raise ValueError(f"{reason}; name a folder to write to.")
    return Path(path)
