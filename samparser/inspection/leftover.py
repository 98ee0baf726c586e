"""What full tuning changed beside the layers that an adapter approximates, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from samparser._words import count, shortened


@dataclass(frozen=True)
class PartChange:
    """What changed in one part of a model.

    Args:
        part: The part, such as "mask_decoder" or "vision_encoder.layers".
        numbers: How many numbers the tensors hold that changed.
        change: Frobenius norm of the change of all of them together.
        relative: That norm over the norm of the same tensors of the base.
        kept: Whether the adapter keeps the tuned values.
    """

    part: str
    numbers: int
    change: float
    relative: float
    kept: bool

    def __str__(self) -> str:
        said = "kept in full" if self.kept else "not in the adapter"
        return f"{self.part}: changed by {100 * self.relative:.3g} % in {count(self.numbers, 'number')}, {said}"


def refuse_other_architecture(base: nn.Module, tuned: nn.Module) -> None:
    """Refuse two models whose weights cannot be compared one by one.

    Raises:
        ValueError: A tensor is missing in one of them, or has another shape, or a weight is not finite.
    """
    first, second = base.state_dict(), tuned.state_dict()
    kinds = f"{type(base).__name__} and {type(tuned).__name__}"
    if missing := sorted(set(first) ^ set(second)):
        raise ValueError(
            f"The models have different weights ({kinds}): {shortened(missing, 3)} are in one of them only. Give two "
            "models of the same architecture."
        )
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the base and {tuple(second[name].shape)} in the tuned "
                f"model ({kinds}). Give two models of the same architecture."
            )
        if second[name].is_floating_point() and not bool(second[name].isfinite().all()):
            raise ValueError(f"{name} of the tuned model holds values that are not finite; the tuning has failed.")


@torch.no_grad()
def changed_parts(
    base: nn.Module, tuned: nn.Module, *, without: Iterable[str] = (), keep: Sequence[str] = ()
) -> tuple[PartChange, ...]:
    """Find what differs between two models, the part that changed most first.

    Args:
        base: The base model.
        tuned: The same architecture with other weights.
        without: Names of tensors that do not count.
        keep: Modules whose tuned values are kept.
    """
    left_out, sums = set(without), dict[tuple[str, bool], list[float]]()
    second = tuned.state_dict()
    for name, before in base.state_dict().items():
        if name in left_out or not before.is_floating_point() or torch.equal(before, second[name]):
            continue
        kept = any(f".{module}." in f".{name}" for module in keep)
        start = before.double()
        values = (before.numel(), float((second[name].double() - start).square().sum()), float(start.square().sum()))
        whole = sums.setdefault((_part(name), kept), [0, 0.0, 0.0])
        for at, value in enumerate(values):
            whole[at] += value
    parts = [
        PartChange(part, int(numbers), math.sqrt(change), math.sqrt(change / size) if size else math.inf, kept)
        for (part, kept), (numbers, change, size) in sums.items()
    ]
    return tuple(sorted(parts, key=lambda one: -one.change))


def _part(name: str) -> str:
    """The part of a model that a tensor is in: the encoder's neck and layers apart, every other part as a whole."""
    first, *others = name.split(".")
    return f"{first}.{others[0]}" if first.endswith("encoder") and others else first
