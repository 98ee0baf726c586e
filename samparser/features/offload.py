"""An image encoder without its frozen part: it takes cached features where images went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samparser._files import replacing
from samparser._hashing import sha256_of

from .store import DamagedFeaturesError

_LOAD_AGAIN = (
    "It held the frozen part of the image encoder while features took its place, so this model is incomplete now: load "
    "the base model again. A training run goes on from its last checkpoint with --resume."
)


class FeatureInput(nn.Module):
    """A module that stands where the patch embedding stood and lets features through.

    Args:
        shape: Of the features of one image.
        dtype: What the features are converted to: that of the encoder put away.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, *shape) in the encoder's dtype.

        Raises:
            ValueError: The input is an image, or has another shape.
        """
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(
                f"This model's frozen image encoder is put away while it works from cached features of shape "
                f"(batch, {', '.join(map(str, self.shape))}); it got {tuple(features.shape)}. Feed it what the cache's "
                "processor gives, or leave the cache's `feeding` block to use images again."
            )
        return features.to(self.dtype)


class EncoderAside:
    """The frozen part of an image encoder, put aside with its weights on disk until `restore`.

    Args:
        encoder: transformers' SamVisionEncoder.
        shape: Of the features of one image.
        weights: File for the weights; one that holds them already is kept, any other is replaced.
        after_neck: The features are what the neck gives, not what enters it.
    """

    def __init__(self, encoder: Any, shape: tuple[int, ...], weights: Path, *, after_neck: bool) -> None:
        self._encoder, self._weights = encoder, weights
        self._parts = {"patch_embed": encoder.patch_embed, "layers": encoder.layers}
        self._position = encoder.pos_embed
        self._neck = encoder.neck
        self._tensors = dict(_tensors(self._parts, self._position))
        if not _holds(weights, self._tensors):
            with replacing(weights) as temporary:
                save_file({name: t.detach().cpu().contiguous() for name, t in self._tensors.items()}, temporary)
        self._hash = sha256_of(*self._tensors.values())
        dtype = next(iter(self._tensors.values())).dtype
        for tensor in self._tensors.values():
            tensor.data = tensor.data.new_empty(0)
        encoder.patch_embed = FeatureInput(shape, dtype)
        encoder.layers = nn.ModuleList()
        encoder.pos_embed = None
        if after_neck:
            encoder.neck = nn.Identity()

    def restore(self) -> None:
        """Give the encoder its frozen part back: the same parameter objects with the same values, on its device.

        Raises:
            DamagedFeaturesError: The file with the weights is gone or has changed meanwhile.
        """
        device = next(self._neck.parameters()).device
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
        self._encoder.patch_embed = self._parts["patch_embed"]
        self._encoder.layers = self._parts["layers"]
        self._encoder.pos_embed = self._position
        self._encoder.neck = self._neck


def _holds(file: Path, tensors: dict[str, Tensor]) -> bool:
    """Return whether a file has exactly these tensors: nothing leaves memory that could not come back."""
    try:
        with safe_open(file, framework="pt") as stored:
            if set(stored.keys()) != tensors.keys():
                return False
            return all(torch.equal(stored.get_tensor(name), tensor.detach().cpu()) for name, tensor in tensors.items())
    except (OSError, SafetensorError):
        return False


def _tensors(parts: dict[str, nn.Module], position: Tensor | None) -> list[tuple[str, Tensor]]:
    named = [
        (f"{part}.{name}", tensor)
        for part, module in parts.items()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    ]
    return [*named, *([] if position is None else [("pos_embed", position)])]
