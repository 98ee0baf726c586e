"""The data pass of an expansion before training: its directions are chosen by the training loss on training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from samparser.methods import trained_too
from samparser.prompts import PromptedDataset, collate
from samparser.sam.families import family_of
from samparser.sam.wrapped import plain_model
from samparser.tuner import ExpansionReport, awaited_terms, initialize_expansion

from .settings import TrainSettings
from .trainer import batch_loss, mask_logits


def choose_terms(model: nn.Module, prompted: PromptedDataset, settings: TrainSettings) -> ExpansionReport | None:
    """Choose the directions of the active adapter's expansion where it waits for them.

    One half of at most `settings.expansion_images` images, drawn by the seed, chooses; the other measures which share
    of the gradient's signal the adapter's numbers see. Images and prompts are those of the first epoch, from the cache
    where there is one. A function of seed, images and model alone, so a resumed run chooses the same again.

    Returns:
        What was chosen; None where no expansion waits.

    Raises:
        ValueError: A gradient is zero or not finite, a layer does not allow so many terms, or there are fewer than two
            images.
    """
    adapter = getattr(model, "active_adapter", None)
    if not isinstance(adapter, str) or not awaited_terms(model, adapter):
        return None
    batches = _Batches(prompted, settings)
    model.to(settings.device)
    with trained_too(model), family_of(model).single_mask(plain_model(model)):
        return initialize_expansion(
            model,
            batches,
            batches.loss,
            adapter_name=adapter,
            max_batches=len(batches),
            seed=settings.seed,
            show=False,
        )


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
