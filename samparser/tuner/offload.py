"""Weights that accelerate keeps on the CPU or on disk and lends to their layer for each forward pass.

Such a layer cannot be adapted: its weight has to be split before the first pass, and changed in every one.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

_WAY_OUT = "Load the base model without offloading, or with a device_map that keeps this layer's weight on a device."


def refuse_offloaded(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose weights accelerate has offloaded.

    Raises:
        ValueError: Some of the layers have no weight in memory; the message names them and the way out.
    """
    offloaded = [name for name in names if _is_offloaded(model, name)]
    if offloaded:
        more = f" and {len(offloaded) - 4} more" if len(offloaded) > 4 else ""
        raise ValueError(
            f"Cannot adapt {', '.join(offloaded[:4])}{more}: accelerate keeps the weight on the CPU or on disk until "
            f"the layer runs, and its coefficients need it in memory. {_WAY_OUT}"
        )


def without_values(name: str, base: nn.Module) -> str:
    """What to say when a layer is to compute and its base weight has no values."""
    if _lends_weights(base):
        return (
            f"{name}: accelerate offloaded the weight to the CPU or to disk after the layer was adapted, and an "
            f"adapted layer needs it in memory. {_WAY_OUT}"
        )
    return (
        f"{name}: the base weight is on the meta device and has no values. Load the base model's weights first, for "
        "instance with load_state_dict(..., assign=True)."
    )


def _is_offloaded(model: nn.Module, name: str) -> bool:
    """Whether a layer's weight is absent because the layer, or a module that contains it, has an offloading hook."""
    layer = model.get_submodule(name)
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    parts = name.split(".")
    holders = [base, *(model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))]
    weight = base.weight
    return isinstance(weight, Tensor) and weight.is_meta and any(map(_lends_weights, holders))


def _lends_weights(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))
