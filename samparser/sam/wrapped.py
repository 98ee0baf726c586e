"""What is inside a wrapper: the transformers model, its image processor, the layers of PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def plain_model(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a PeftModel, adapters included; any other model as it is."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def image_processor(processor: Any) -> Any:
    """Return the image processor inside a SamProcessor; an image processor as it is."""
    return getattr(processor, "image_processor", processor)


def adapter_modules(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and module of every layer of PEFT within a module: adapters, and copies of `modules_to_save`."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return ((name, inner) for name, inner in module.named_modules() if isinstance(inner, kinds))
