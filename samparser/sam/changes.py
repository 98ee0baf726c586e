"""What tuning changes of a model: of its image encoder before the neck and in it, and whether it is tuned at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .families.registry import family_of
from .wrapped import adapter_modules, plain_model

_TUNED = "_samparser_tuned"


@dataclass(frozen=True)
class EncoderChanges:
    """What tuning changes of an image encoder or a part of it, by full names in the plain model; false for nothing.

    Attributes:
        trained: Parameters that require a gradient.
        adapted: Modules that carry an adapter of PEFT, active or not, or a copy of `modules_to_save`.
    """

    trained: tuple[str, ...]
    adapted: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.trained or self.adapted)


def changes_before_neck(model: nn.Module) -> EncoderChanges:
    """Return what tuning changes of the image encoder before its neck.

    Where nothing is changed, what enters the neck depends on the image alone: it can be shared by adapters and kept.

    Raises:
        TypeError: The model is of no family.
    """
    return _encoder_changes(model, in_neck=False)


def changes_in_neck(model: nn.Module) -> EncoderChanges:
    """Return what tuning changes of the image encoder's neck."""
    return _encoder_changes(model, in_neck=True)


def frozen_before_neck(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the image encoder before its neck, or none where something of them is tuned.

    They belong in eval mode while what follows them trains: batch norms would drift otherwise.
    """
    if changes_before_neck(model):
        return []
    return [part for part in family_of(model).upstream(model).values() if isinstance(part, nn.Module)]


def is_tuned(model: nn.Module) -> bool:
    """Return whether a model's masks are those of a tuned model as it runs now.

    It has an adapter or a trained copy of a module that is switched on, or `mark_tuned` said so.
    """
    switched_on = any(module.active_adapters and not module.disable_adapters for _, module in adapter_modules(model))
    return switched_on or bool(getattr(plain_model(model), _TUNED, False))


def mark_tuned(model: nn.Module, tuned: bool = True) -> None:
    """Say that a model is a tuned one, or is not, where that shows in no adapter: its own weights were trained."""
    setattr(plain_model(model), _TUNED, tuned)


def _encoder_changes(model: nn.Module, *, in_neck: bool) -> EncoderChanges:
    neck = family_of(model, "Looking for what is tuned").neck_name
    encoder_name = neck.rpartition(".")[0]
    encoder: Any = plain_model(model).get_submodule(encoder_name)

    def chosen(name: str) -> bool:
        return f"{encoder_name}.{name}.".startswith(f"{neck}.") == in_neck

    trained = (name for name, parameter in encoder.named_parameters() if parameter.requires_grad and chosen(name))
    adapted = (name for name, _ in adapter_modules(encoder) if chosen(name))
    return EncoderChanges(
        tuple(f"{encoder_name}.{name}" for name in trained), tuple(f"{encoder_name}.{name}" for name in adapted)
    )
