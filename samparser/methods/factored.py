"""Layers of coefficients in the form that their cost is usually given for: V, p and U, one after another."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from samparser.tuner import SVDCoefficientConfig, SVDCoefficientLayer


class Scale(nn.Module):
    """Multiplies channels by coefficients: (B, rank, H, W) if `spatial`, else (..., rank)."""

    def __init__(self, rank: int, spatial: bool) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.empty((rank, 1, 1) if spatial else (rank,), device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, each channel times its coefficient."""
        return x * self.p


def factored_form(tuned: nn.Module, plain: nn.Module) -> nn.Module | None:
    """Return the plain model with a sequence V, p, U in the place of each layer whose coefficients `tuned` trains.

    Works on shapes alone, so both models are on the meta device; `plain` is changed. What trains in `tuned` trains
    in what is returned. None where `tuned` trains anything but coefficients in such layers.
    """
    config = getattr(tuned, "peft_config", {}).get("default")
    if not isinstance(config, SVDCoefficientConfig) or config.trainable != "coefficients":
        return None
    plain.requires_grad_(False)
    for name, module in tuned.named_modules():
        if isinstance(module, SVDCoefficientLayer):
            parent, _, leaf = name.removeprefix("base_model.model.").rpartition(".")
            setattr(plain.get_submodule(parent), leaf, _three_layers(cast(Any, module).get_base_layer()))
    for name in config.modules_to_save or ():
        plain.get_submodule(name).requires_grad_(True)
    return plain


def _three_layers(layer: nn.Module) -> nn.Sequential:
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        rank = min(layer.out_channels, math.prod(layer.weight.shape[1:]))
        along = nn.Conv2d(
            layer.in_channels,
            rank,
            cast(Any, layer.kernel_size),
            cast(Any, layer.stride),
            cast(Any, layer.padding),
            bias=False,
            device="meta",
        )
        return nn.Sequential(
            along.requires_grad_(False),
            Scale(rank, spatial=True),
            nn.Conv2d(rank, layer.out_channels, 1, bias=bias, device="meta").requires_grad_(False),
        )
    if isinstance(layer, nn.ConvTranspose2d):  # The rows of its weight are inputs.
        rank = min(layer.in_channels, math.prod(layer.weight.shape[1:]))
        geometry = {
            name: cast(Any, getattr(layer, name)) for name in ("stride", "padding", "output_padding", "dilation")
        }
        last = nn.ConvTranspose2d(
            rank, layer.out_channels, cast(Any, layer.kernel_size), bias=bias, device="meta", **geometry
        )
        return nn.Sequential(
            nn.Conv2d(layer.in_channels, rank, 1, bias=False, device="meta").requires_grad_(False),
            Scale(rank, spatial=True),
            last.requires_grad_(False),
        )
    assert isinstance(layer, nn.Linear), f"a {type(layer).__name__} among a SAM's tuned layers"
    rank = min(layer.out_features, layer.in_features)
    return nn.Sequential(
        nn.Linear(layer.in_features, rank, bias=False, device="meta").requires_grad_(False),
        Scale(rank, spatial=False),
        nn.Linear(rank, layer.out_features, bias=bias, device="meta").requires_grad_(False),
    )
