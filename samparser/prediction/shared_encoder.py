"""One image through several adapters of a PeftModel; what none of them changes runs once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from samparser._words import shortened
from samparser.sam.modes import catching_neck_input
from samparser.sam.wrapped import adapter_modules, changes_before_neck, plain_model


@contextmanager
def using_adapter(model: Any, adapter: str | None) -> Iterator[None]:
    """Make one adapter of a PeftModel the active one, or none (the base model) for None, inside the block.

    Which adapter is active is the model's, so only one thread may use the model meanwhile. Afterwards the same adapters
    are active, and the same parameters require a gradient, as before.
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
    """The embeddings of one image under several adapters.

    When every adapted module of the encoder is in its neck, as with SAM-PARSER, the transformer runs once and each
    adapter costs a neck. Otherwise each adapter costs a whole encoder. What was computed is kept, and computed anew
    when a weight that it came from has changed.

    Args:
        model: SamModel or a PeftModel around it.
        pixel_values: (1, 3, S, S) as the processor makes them, on the model's device.
    """

    def __init__(self, model: nn.Module, pixel_values: Tensor) -> None:
        self._sam: Any = plain_model(model)
        self._pixel_values = pixel_values
        self._kept: dict[str, tuple[object, Tensor]] = {}

    def embed(self) -> Tensor:
        """Return image embeddings (1, C, h, w) under the adapters that are active now."""
        encoder = self._sam.vision_encoder
        state = _state(encoder)
        kept_state, embeddings = self._kept.get("embeddings", (None, None))
        if embeddings is None or kept_state != state:
            embeddings = self._encode()
            self._kept["embeddings"] = (state, embeddings)
        return embeddings

    def _encode(self) -> Tensor:
        encoder = self._sam.vision_encoder
        # The model's, not the encoder's: with its frozen part put aside the encoder may hold none.
        parameter = next(self._sam.parameters())
        pixel_values = self._pixel_values.to(parameter.device, parameter.dtype)
        if changes_before_neck(self._sam).adapted:
            return self._sam.get_image_embeddings(pixel_values)
        state = _state(encoder, with_neck=False)
        kept_state, entering = self._kept.get("entering the neck", (None, None))
        if entering is not None and kept_state == state:
            return encoder.neck(entering)
        with catching_neck_input(encoder.neck) as caught:
            embeddings = self._sam.get_image_embeddings(pixel_values)
        self._kept["entering the neck"] = (state, caught[0])
        return embeddings


def _state(encoder: nn.Module, *, with_neck: bool = True) -> object:
    """Return what decides an embedding besides the image, as something to compare: weights and active adapters.

    In-place changes of a weight show in its version, an exchange of its values in their address, merging in the list
    of what is merged; what is written in place to `weight.data` shows nowhere.
    """

    def counts(name: str) -> bool:
        return with_neck or not name.startswith("neck.")

    weights = [
        (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for name, weight in encoder.named_parameters()
        if counts(name)
    ]
    adapters = [
        (
            *module.active_adapters,
            bool(module.disable_adapters),
            tuple(getattr(module, "merged_adapters", ())),
            str(getattr(module, "scaling", None)),
        )
        for name, module in adapter_modules(encoder)
        if counts(name)
    ]
    return weights, adapters


def check_adapters(model: Any, adapters: Sequence[str | None]) -> None:
    """Make sure that a model has the adapters named.

    Raises:
        TypeError: The model is no PeftModel.
        ValueError: A name is unknown or occurs twice.
    """
    if not hasattr(model, "set_adapter") or not hasattr(model, "peft_config"):
        raise TypeError(f"adapters={list(adapters)} needs a PeftModel; got a {type(model).__name__} without adapters.")
    known = list(model.peft_config)
    if unknown := [name for name in adapters if name is not None and name not in known]:
        raise ValueError(
            f"No adapter {unknown[0]!r}; loaded are {shortened(known, 20)}. None stands for the base model."
        )
    if len(set(adapters)) < len(adapters):
        raise ValueError(f"adapters names one twice: {list(adapters)}.")
