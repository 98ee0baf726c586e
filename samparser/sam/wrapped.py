"""What is inside a wrapper: the transformers model, its image processor, and what tuning changed of the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


def plain_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a PeftModel, adapters included; any other model as it is."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def plain_sam(model: nn.Module, purpose: str) -> Any:
    """Return the SamModel inside a wrapper.

    Args:
        model: SamModel, or a PeftModel around one.
        purpose: What needs it, as the start of the message: "Prediction".

    Raises:
        TypeError: The model is another one.
    """
    sam = plain_model(model)
    if getattr(getattr(sam, "config", None), "model_type", None) != "sam":
        raise TypeError(f"{purpose} needs a SamModel, or a PeftModel around one; got a {type(sam).__name__}.")
    return sam


def image_processor(processor: Any) -> Any:
    """Return the image processor inside a SamProcessor; an image processor as it is."""
    return getattr(processor, "image_processor", processor)


def input_size(processor: Any) -> int:
    """Return the longest side in pixels to which a processor resizes images, 1024 for the published SAMs."""
    return int(image_processor(processor).size["longest_edge"])


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
    """
    return _encoder_changes(model, in_neck=False)


def changes_in_neck(model: nn.Module) -> EncoderChanges:
    """Return what tuning changes of the image encoder's neck."""
    return _encoder_changes(model, in_neck=True)


def adapter_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of every layer of PEFT within a module: adapters, and copies of `modules_to_save`."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return ((name, inner) for name, inner in module.named_modules() if isinstance(inner, kinds))


def _encoder_changes(model: nn.Module, *, in_neck: bool) -> EncoderChanges:
    encoder: Any = plain_model(model)
    encoder = encoder.vision_encoder

    def chosen(name: str) -> bool:
        return (name.split(".")[0] == "neck") == in_neck

    trained = (name for name, parameter in encoder.named_parameters() if parameter.requires_grad and chosen(name))
    adapted = (name for name, _ in adapter_modules(encoder) if chosen(name))
    return EncoderChanges(
        tuple(f"vision_encoder.{name}" for name in trained), tuple(f"vision_encoder.{name}" for name in adapted)
    )
