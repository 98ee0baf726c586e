"""Whether a model is the base that a tuned part was trained on: the hashes of all weights that stayed frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from samparser._hashing import sha256_of


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash each tensor's dtype, shape and bytes: sixteen hexadecimal digits of SHA-256."""
    return {name: sha256_of(f"{t.dtype} {tuple(t.shape)} ", t)[:16] for name, t in tensors.items()}


def frozen_tensors(model: nn.Module, trained: Iterable[str]) -> dict[str, Tensor]:
    """Return everything in a model's state that its method does not train."""
    trained = set(trained)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in trained}


def weight_dtype(model: nn.Module) -> str:
    """Return the dtype of the model's weights, as `float32`."""
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    return " and ".join(dtypes) or "none"


def check_base(model: nn.Module, saved: Mapping[str, Any], folder: object) -> None:
    """Refuse a model that does not hold the frozen weights that the tuned part was trained on.

    Args:
        model: The base model, before the method is applied.
        saved: `{"dtype": ..., "weights": fingerprint}` as the folder keeps it. Names may differ between the two, as
            methods that wrap a module rename its weights; contents may not.
        folder: Where `saved` was read, for the message.

    Raises:
        ValueError: Another architecture, other weights, or the same model in another dtype.
    """
    state = model.state_dict()
    mine = fingerprint(state)
    contents = set(mine.values())
    missing = [name for name, digest in saved["weights"].items() if mine.get(name) != digest and digest not in contents]
    if not missing:
        return
    problem = f"{len(missing)} of {len(saved['weights'])} weights that stayed frozen in training, first {missing[0]}"
    if weight_dtype(model) != saved["dtype"]:
        raise ValueError(
            f"What is in {folder} was trained on a base in {saved['dtype']}; this {type(model).__name__} is in "
            f"{weight_dtype(model)} and differs in {problem}. Load the base in {saved['dtype']}, then the trained "
            f"part, and convert the whole. check_base=False (--check_base false) goes on without this comparison."
        )
    raise ValueError(
        f"What is in {folder} was trained on another base: this {type(model).__name__} differs in {problem}. Load the "
        f"base model it was trained on ({saved.get('name') or 'its name was not recorded'}). check_base=False "
        f"(--check_base false) goes on without this comparison, at the price of masks nobody has validated."
    )
