"""The data pass of an expansion before training: its directions are chosen by the training loss on training images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from accelerate.utils import broadcast
from torch import Tensor, nn

from samparser._files import write_text
from samparser._untrusted import read_json
from samparser.prompts import PromptedDataset, collate
from samparser.sam.families import family_of
from samparser.sam.wrapped import plain_model
from samparser.tuner import (
    ExpansionReport,
    SVDCoefficientLayer,
    awaited_terms,
    expansion_terms,
    initialize_expansion,
    take_pairs,
)
from samparser.tuner.expansion import most_terms

from .run_folder import RunFolder, RunFolderError
from .settings import TrainSettings
from .trainer import batch_loss, mask_logits


@dataclass(frozen=True)
class Choice:
    """What the data pass gave: its report, for each layer the pairs of bases that it took, and from how many images."""

    report: ExpansionReport
    pairs: dict[str, list[list[int]]]
    images: int

    def __str__(self) -> str:
        alone = "\nThe same image, with other prompts: these shares say nothing of other images."
        return f"{self.report}{alone if self.images == 1 else ''}"


def choose_terms(model: Any, prompted: PromptedDataset, settings: TrainSettings) -> Choice | None:
    """Choose the directions of the active adapter's expansion where it waits for them.

    One half of at most `settings.expansion_images` images, drawn by the seed, chooses; the other measures which share
    of the gradient's signal the adapter's numbers see. Images and prompts are those of the first epoch, from the cache
    where there is one; a single image measures with the prompts of the second. In float32, whatever precision trains.
    A function of seed, images and model, up to rounding.

    Returns:
        What was chosen, and what it sees; None where no expansion waits.

    Raises:
        ValueError: A gradient is zero or not finite, or a layer does not allow so many terms.
    """
    if not expansion_waits(model):
        return None
    adapter, batches = model.active_adapter, _Batches(prompted, settings)
    model.to(settings.device)
    epoch = prompted.epoch
    try:
        with family_of(model).single_mask(plain_model(model)):
            report = initialize_expansion(
                model,
                batches,
                batches.loss,
                adapter_name=adapter,
                max_batches=len(batches),
                seed=settings.seed,
                show=False,
            )
    finally:
        prompted.set_epoch(epoch)
    return Choice(report, _pairs(model), batches.images)


def expansion_waits(model: nn.Module) -> bool:
    """Tell whether the active adapter has an expansion whose directions have not been chosen."""
    adapter = getattr(model, "active_adapter", None)
    return isinstance(adapter, str) and bool(awaited_terms(model, adapter))


def check_terms(model: nn.Module) -> None:
    """Refuse a number of terms that a layer cannot have, before anything is written or computed.

    Raises:
        ValueError: The message names the layer, and how many it allows.
    """
    if not expansion_waits(model):
        return
    waiting = awaited_terms(model, model.active_adapter)  # type: ignore[arg-type]
    for layer in model.modules():
        if isinstance(layer, SVDCoefficientLayer) and layer.layer_name in waiting:
            wanted = layer.states[model.active_adapter].wanted  # type: ignore[index]
            assert wanted is not None
            most = most_terms(wanted.kind, layer.bases.rank)
            if waiting[layer.layer_name] > most:
                raise ValueError(
                    f"The expansion is to have {waiting[layer.layer_name]} terms in each layer, but {layer.layer_name} "
                    f"allows {most} of the kind {wanted.kind!r} at most. Ask for fewer with expansion_rank (the "
                    "method 'expansion' calls it rank)."
                )


def keep_choice(model: Any, folder: RunFolder | None, choice: Choice, *, resume: bool, show: bool) -> None:
    """Write what was chosen to the run folder, before the first step, and make it the choice of every process.

    A resumed run goes on with the pairs that it chose when it began: its checkpoints hold numbers for them, and on
    accelerators rounding may decide otherwise the second time. Directions that are stored come with the checkpoint.

    Args:
        model: The model, on its device.
        folder: The run folder in the first process, None in the others.
        choice: What `choose_terms` gave.
        resume: Whether the run goes on.
        show: Print what the numbers see.

    Raises:
        RunFolderError: The run began with terms in other layers, or with other numbers of them.
    """
    if folder is not None and resume and folder.expansion.is_file():
        kept = read_json(folder.expansion)
        try:
            take_pairs(model, dict(kept["pairs"]), model.active_adapter)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise RunFolderError(
                f"{folder.expansion} says which terms this run began with, and they do not fit this model: {error} "
                "Its checkpoints are of another model or the file is damaged; start again with --overwrite."
            ) from error
    elif folder is not None:
        write_text(folder.expansion, json.dumps(asdict(choice), indent=1) + "\n")
        if show:
            print(choice, flush=True)
    # Directions that are stored are parameters, which DistributedDataParallel makes equal by itself.
    terms = expansion_terms(model, model.active_adapter)
    same = {name: broadcast(term.pairs).tolist() for name, term in terms.items()}
    take_pairs(model, same, model.active_adapter)


def _pairs(model: Any) -> dict[str, list[list[int]]]:
    return {name: terms.pairs.tolist() for name, terms in expansion_terms(model, model.active_adapter).items()}


class _Batches:
    """One image at a time with its prompts, on the device of the settings, drawn by the seed; a single one twice."""

    def __init__(self, prompted: PromptedDataset, settings: TrainSettings) -> None:
        order = np.random.default_rng([settings.seed, 5]).permutation(len(prompted))
        self._prompted, self._settings = prompted, settings
        chosen = order[: settings.expansion_images].tolist()
        self.images = len(chosen)
        self._chosen = [(0, index) for index in chosen] if len(chosen) > 1 else [(0, 0), (1, 0)]

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        device = self._settings.device
        for epoch, index in self._chosen:
            self._prompted.set_epoch(epoch)
            batch = collate([self._prompted[index]])
            yield {name: _moved(value, device) for name, value in batch.items()}

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the loss that training takes the gradient of."""
        return batch_loss(mask_logits(model, batch), batch, self._settings).total


def _moved(value: Any, device: Any) -> Any:
    """Bring tensors, and tuples of them, to a device."""
    if isinstance(value, tuple):
        return tuple(tensor.to(device) for tensor in value)
    return value.to(device) if isinstance(value, Tensor) else value
