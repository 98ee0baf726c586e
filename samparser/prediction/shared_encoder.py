"""One image through several adapters of a PeftModel; what none of them changes runs once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from samparser._hashing import version_of
from samparser._words import shortened
from samparser.sam.families import Features, family_of
from samparser.sam.wrapped import adapter_modules, plain_model


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
    """What the mask decoder takes of one image, under several adapters.

    When every adapted module of the encoder is in its neck, as with SAM-PARSER, the transformer runs once and each
    adapter costs a neck. Otherwise each adapter costs a whole encoder. What was computed is kept, and computed anew
    when a weight that it came from has changed.

    Args:
        model: A model of a SAM family or a PeftModel around it.
        pixel_values: (1, 3, S, S) as the processor makes them, or the features (1, ...) of a cache.
    """

    def __init__(self, model: nn.Module, pixel_values: Tensor | Features) -> None:
        self._sam: Any = plain_model(model)
        self._family = family_of(model)
        self._pixel_values = pixel_values
        self._features: tuple[object, Features] | None = None
        self._embedded: tuple[object, dict[str, Any]] | None = None

    def embed(self) -> dict[str, Any]:
        """Return what the model's forward takes in place of pixels, under the adapters that are active now."""
        state = self._state()
        if self._embedded is None or self._embedded[0] != state:
            # Everything counts: in some families a part of the decoder runs between neck and embeddings.
            self._embedded = state, self._family.embed(self._sam, self._encoded())
        return self._embedded[1]

    def _encoded(self) -> Features:
        # The model's, not the encoder's: with its frozen part put aside the encoder may hold none.
        parameter = next(self._sam.parameters())
        if isinstance(self._pixel_values, tuple):
            return tuple(tensor.to(parameter.device, parameter.dtype) for tensor in self._pixel_values)
        encoder, _, neck = self._family.neck_name.rpartition(".")
        state = self._state(encoder, without=neck)
        if self._features is None or self._features[0] != state:
            pixel_values = self._pixel_values.to(parameter.device, parameter.dtype)
            self._features = state, self._family.encode(self._sam, pixel_values)
        return self._features[1]

    def _state(self, part: str = "", *, without: str | None = None) -> object:
        """Return what decides the output of a part besides the image, as something to compare: weights and adapters.

        In-place changes of a weight show in its version, an exchange of its values in their address, merging in the
        list of what is merged; what is written in place to `weight.data` shows nowhere.
        """
        module = self._sam.get_submodule(part)

        def counts(name: str) -> bool:
            return without is None or not f"{name}.".startswith(f"{without}.")

        weights = [
            (weight.data_ptr(), version_of(weight)) for name, weight in module.named_parameters() if counts(name)
        ]
        adapters = [
            (
                *layer.active_adapters,
                bool(layer.disable_adapters),
                tuple(getattr(layer, "merged_adapters", ())),
                str(getattr(layer, "scaling", None)),
            )
            for name, layer in adapter_modules(module)
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
