"""Interpolation between a base model and an adapter, and beyond it: the score against the adapter's scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper

from samparser.prediction.shared_encoder import using_adapter

from .moves import adapted_layers
from .scores import Evaluation, Score, difference, percent, score_of

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""From the base model to half as far again beyond the adapter as it was trained."""


@dataclass(frozen=True)
class Curve:
    """The score against the scale of an adapter.

    Args:
        adapter: Its name.
        scales: The scales; 0 is the base model, 1 the adapter as it was trained.
        scores: At each scale.
        gains: At each scale the paired difference to the first scale, image by image.
    """

    adapter: str
    scales: tuple[float, ...]
    scores: tuple[Score, ...]
    gains: tuple[Score, ...]

    @property
    def best(self) -> int:
        """The place of the best mIoU in `scales`; the smallest scale of equals."""
        return max(range(len(self.scales)), key=lambda at: self.scores[at].miou)

    def __str__(self) -> str:
        """Write a line for each scale."""
        first = f"mIoU gained over scale {self.scales[0]:g}"
        lines = [f"{self.adapter}", f"{'scale':>6}  {'mIoU %':>15}  {'F1 %':>15}  {first}"]
        for at, (scale, score, gain) in enumerate(zip(self.scales, self.scores, self.gains, strict=True)):
            scores = percent(score.miou, score.miou_error), percent(score.f1, score.f1_error)
            gained = percent(gain.miou, gain.miou_error, signed=True) if at else ""
            mark = "  best" if at == self.best else ""
            lines.append(f"{scale:6g}  {scores[0]:>15}  {scores[1]:>15}  {gained}{mark}".rstrip())
        return "\n".join(lines)


def interpolate(model: Any, adapter: str, evaluation: Evaluation, scales: Sequence[float] = SCALES) -> Curve:
    """Score an adapter at several scales, from the base model to beyond the adapter.

    Modules that the adapter trained in full move along a straight line between the base's weights and the trained ones.
    The model is afterwards as it was.

    Args:
        model: A PeftModel with the adapter.
        adapter: The adapter's name.
        evaluation: What is scored, and how.
        scales: At least one finite number.

    Raises:
        ValueError: There is no such adapter, or `scales` is empty or not finite.
    """
    adapted_layers(model, adapter)
    check_scales(scales)
    tables = []
    for scale in scales:
        with at_scale(model, adapter, scale):
            tables.append(evaluation.table(model))
    gains = tuple(difference(table, tables[0]) for table in tables)
    return Curve(adapter, tuple(map(float, scales)), tuple(map(score_of, tables)), gains)


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales that are none.

    Raises:
        ValueError: There is no scale, or one is not finite.
    """
    if not scales or not all(math.isfinite(scale) for scale in scales):
        raise ValueError(f"scales={list(scales)} has to hold at least one number, and only finite ones.")


@contextmanager
def at_scale(model: Any, adapter: str, scale: float) -> Iterator[None]:
    """Make one adapter the active one, at a scale, inside the block; afterwards everything is as it was.

    Scale 0 computes with the base model's weights, 1 with those of the adapter as it was trained. Modules that were
    trained in full are interpolated, `base + scale (trained - base)`.
    """
    layers = adapted_layers(model, adapter)
    scalings = [layer.scaling[adapter] for layer in layers]
    kept = []
    try:
        with using_adapter(model, adapter), torch.no_grad():
            for layer in layers:
                layer.set_scale(adapter, scale)
            for start, trained in _trained_in_full(model, adapter):
                kept.append((trained, trained.clone()))
                trained.copy_(torch.lerp(start, trained, scale))  # Exact at 0 and at 1.
            yield
    finally:
        with torch.no_grad():
            for trained, values in kept:
                trained.copy_(values)
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling[adapter] = scaling


def _trained_in_full(model: Any, adapter: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors of modules in modules_to_save: those of the base, and the adapter's own."""
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter in wrapper.modules_to_save:
            base = wrapper.original_module.state_dict()
            for name, trained in wrapper.modules_to_save[adapter].state_dict().items():
                if trained.is_floating_point():
                    yield base[name], trained
