"""The part of a model before its neck, out of memory for a while."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samparser._files import replacing
from samparser._hashing import sha256_of

from .keys import named_tensors
from .store import DamagedFeaturesError

_LOAD_AGAIN = (
    "It held the frozen part of the image encoder while features took its place, so this model is incomplete now: load "
    "the base model again. A training run goes on from its last checkpoint with --resume."
)


class PutAside(nn.Module):
    """A module in the place of one that is put aside, which can do nothing."""

    def forward(self, *_: Any, **__: Any) -> Any:
        """Raise an error that says where the module is."""
        raise RuntimeError(
            "This model's frozen image encoder is put away while it works from cached features. Leave the cache's "
            "`feeding` block to use images again."
        )


class EncoderAside:
    """The frozen parts of an image encoder, put aside with their weights on disk until `restore`.

    Args:
        model: The plain model.
        parts: Its parts to put aside, by full name: what `Family.upstream` gives.
        weights: File for the weights; one that holds them already is kept, any other is replaced.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, nn.Module | nn.Parameter], weights: Path) -> None:
        self._model, self._parts, self._weights = model, dict(parts), weights
        self._tensors = named_tensors(parts)
        if not _holds(weights, self._tensors):
            with replacing(weights) as temporary:
                save_file({name: t.detach().cpu().contiguous() for name, t in self._tensors.items()}, temporary)
        self._hash = sha256_of(*self._tensors.values())
        for tensor in self._tensors.values():
            tensor.data = tensor.data.new_empty(0)
        for name, part in self._parts.items():
            self._put(name, PutAside() if isinstance(part, nn.Module) else None)

    def restore(self) -> None:
        """Give the model its parts back: the same parameter objects with the same values, on its device.

        Raises:
            DamagedFeaturesError: The file with the weights is gone or has changed meanwhile.
        """
        device = next(self._model.parameters()).device
        try:
            values = load_file(self._weights)
            # A copy: the loaded tensors may still be the file, which is not ours to rely on from here on.
            back = {name: values[name].clone() for name in self._tensors}
        except (OSError, SafetensorError, KeyError) as error:
            raise DamagedFeaturesError(f"{self._weights} cannot be read ({error}). {_LOAD_AGAIN}") from error
        if sha256_of(*back.values()) != self._hash:
            raise DamagedFeaturesError(f"{self._weights} has changed since it was written. {_LOAD_AGAIN}")
        for name, tensor in self._tensors.items():
            tensor.data = back[name].to(device)
        for name, part in self._parts.items():
            self._put(name, part)

    def _put(self, name: str, part: nn.Module | nn.Parameter | None) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, part)


def _holds(file: Path, tensors: dict[str, Tensor]) -> bool:
    """Return whether a file has exactly these tensors: nothing leaves memory that could not come back."""
    try:
        with safe_open(file, framework="pt") as stored:
            if set(stored.keys()) != tensors.keys():
                return False
            return all(torch.equal(stored.get_tensor(name), tensor.detach().cpu()) for name, tensor in tensors.items())
    except (OSError, SafetensorError):
        return False
