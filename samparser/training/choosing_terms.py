"""The data pass of an expansion before training: its directions are chosen by the training loss on training images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from samparser._files import write_text
from samparser._untrusted import read_json
from samparser.prompts import PromptedDataset, collate
from samparser.sam.families import family_of
from samparser.sam.wrapped import plain_model
from samparser.tuner import ExpansionReport, awaited_terms, expansion_terms, initialize_expansion

from .run_folder import RunFolder, RunFolderError
from .settings import TrainSettings
from .trainer import batch_loss, mask_logits


@dataclass(frozen=True)
class Choice:
    """What the data pass gave: its report, and for each layer the pairs of bases that it took."""

    report: ExpansionReport
    pairs: dict[str, list[list[int]]]


def choose_terms(model: Any, prompted: PromptedDataset, settings: TrainSettings) -> Choice | None:
    """Choose the directions of the active adapter's expansion where it waits for them.

    One half of at most `settings.expansion_images` images, drawn by the seed, chooses; the other measures which share
    of the gradient's signal the adapter's numbers see. Images and prompts are those of the first epoch, from the cache
    where there is one. A function of seed, images and model alone, so a resumed run chooses the same again.

    Returns:
        What was chosen, and what it sees; None where no expansion waits.

    Raises:
        ValueError: A gradient is zero or not finite, a layer does not allow so many terms, or there are fewer than two
            images.
    """
    if not expansion_waits(model):
        return None
    adapter, batches = model.active_adapter, _Batches(prompted, settings)
    model.to(settings.device)
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
    pairs = {name: terms.pairs.tolist() for name, terms in expansion_terms(model, adapter).items()}
    return Choice(report, pairs)


def expansion_waits(model: nn.Module) -> bool:
    """Tell whether the active adapter has an expansion whose directions have not been chosen."""
    adapter = getattr(model, "active_adapter", None)
    return isinstance(adapter, str) and bool(awaited_terms(model, adapter))


def keep_choice(folder: RunFolder, choice: Choice, *, resume: bool, show: bool) -> None:
    """Write what was chosen to the run folder, before the first step.

    Raises:
        RunFolderError: A resumed run chose otherwise than it did when it began, so its checkpoints do not fit.
    """
    if resume and folder.expansion.is_file():
        kept = read_json(folder.expansion)
        if isinstance(kept, dict) and kept.get("pairs") == choice.pairs:
            return
        raise RunFolderError(
            f"{folder.path}: the directions of the expansion were chosen otherwise when this run began "
            f"({folder.expansion.name}), so its checkpoints do not fit them. They are a function of images, model and "
            "machine; resume where the run began, or start again with --overwrite."
        )
    write_text(folder.expansion, json.dumps(asdict(choice), indent=1) + "\n")
    if show:
        print(choice.report, flush=True)


class _Batches:
    """One image at a time with its prompts, on the device of the settings, drawn by the seed."""

    def __init__(self, prompted: PromptedDataset, settings: TrainSettings) -> None:
        order = np.random.default_rng([settings.seed, 5]).permutation(len(prompted))
        self._prompted, self._settings = prompted, settings
        self._chosen = order[: settings.expansion_images].tolist()

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        device = self._settings.device
        for index in self._chosen:
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
