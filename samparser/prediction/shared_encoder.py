"""Running one image through several adapters of a PeftModel, and leaving the model as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from samparser.sam.presets import plain_model


@contextmanager
def using_adapter(model: Any, adapter: str | None) -> Iterator[None]:
    """Makes one adapter of a PeftModel the active one, or none (the base model) for None.

    Afterwards the same adapters are active, and the same parameters require a gradient, as before.
    """
    active = list(model.active_adapters)
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if adapter is not None:
            model.set_adapter(adapter)
        with model.disable_adapter() if adapter is None else nullcontext():
            yield
    finally:
        if adapter is not None:
            if len(active) == 1:
                model.set_adapter(active[0])
            else:
                model.base_model.set_adapter(active)
        model.requires_grad_(False)
        for parameter in required:
            parameter.requires_grad_(True)


class SharedEncoder:
    """Embeds one image under several adapters, running only once what none of them changes.

    When every adapted module of the encoder is in its neck, as with SAM-PARSER, the transformer runs once and each
    adapter costs a neck. Otherwise each adapter costs a whole encoder.

    Args:
        model: SamModel or a PeftModel around it.
        pixel_values: (1, 3, S, S) as the processor makes them, on the model's device.
    """

    def __init__(self, model: nn.Module, pixel_values: Tensor) -> None:
        sam: Any = plain_model(model)
        self._sam = sam
        self._pixel_values = pixel_values
        self._before_neck: Tensor | None = None
        self._shareable = not _adapted_before_neck(sam.vision_encoder)

    def embed(self) -> Tensor:
        """Image embeddings (1, C, h, w) under the adapters that are active now."""
        if self._before_neck is not None:
            return self._sam.vision_encoder.neck(self._before_neck)
        if not self._shareable:
            return self._sam.get_image_embeddings(self._pixel_values)

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._before_neck = arguments[0]

        handle = self._sam.vision_encoder.neck.register_forward_pre_hook(keep)
        try:
            return self._sam.get_image_embeddings(self._pixel_values)
        finally:
            handle.remove()


def _adapted_before_neck(encoder: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return any(
        isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        for name, module in encoder.named_modules()
        if name.split(".")[0] != "neck"
    )


def check_adapters(model: Any, adapters: Sequence[str | None]) -> None:
    """Makes sure that a model has the adapters named.

    Raises:
        TypeError: The model is no PeftModel.
        ValueError: A name is unknown or occurs twice.
    """
    if not hasattr(model, "set_adapter") or not hasattr(model, "peft_config"):
        raise TypeError(f"adapters={list(adapters)} needs a PeftModel; got a {type(model).__name__} without adapters.")
    known = list(model.peft_config)
    if unknown := [name for name in adapters if name is not None and name not in known]:
        raise ValueError(f"No adapter {unknown[0]!r}; loaded are {', '.join(known)}. None stands for the base model.")
    if len(set(adapters)) < len(adapters):
        raise ValueError(f"adapters names one twice: {list(adapters)}.")
