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
    if not isinstance(config, SVDCoefficientConfig) or config.trainable != "coefficients" or config.expansion:
        return None
    plain.requires_grad_(False)
    for name, module in tuned.named_modules():
        if isinstance(module, SVDCoefficientLayer):
            parent, _, leaf = name.removeprefix("base_model.model.").rpartition(".")
            setattr(plain.get_submodule(parent), leaf, _three_layers(cast(Any, module).get_base_layer()))
    for name in config.modules_to_save or ():
        plain.get_submodule(name).requires_grad_(True)
    return plain


class ThreeLayers(nn.Sequential):
    """V, p and U in the place of one layer; transformers reads the dtype of some layers from their `weight`."""

    @property
    def weight(self) -> Tensor:
        """The first of the two weights."""
        return cast(Tensor, self[0].weight)


def _three_layers(layer: nn.Module) -> nn.Sequential:
    geometry: Any = layer
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        rank = min(layer.out_channels, math.prod(layer.weight.shape[1:]))
        place: dict[str, Any] = {"dilation": geometry.dilation, "groups": geometry.groups}
        first: nn.Module = nn.Conv2d(
            layer.in_channels, rank, geometry.kernel_size, geometry.stride, geometry.padding, **place, bias=False
        )
        last: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=bias)
    elif isinstance(layer, nn.ConvTranspose2d):  # split by its inputs: U comes first, at the smaller size
        rank = min(layer.in_channels, math.prod(layer.weight.shape[1:]))
        first = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
        place = {"output_padding": geometry.output_padding, "dilation": geometry.dilation}
        last = nn.ConvTranspose2d(
            rank, layer.out_channels, geometry.kernel_size, geometry.stride, geometry.padding, **place, bias=bias
        )
    else:
        assert isinstance(layer, nn.Linear), f"a {type(layer).__name__} among the tuned layers"
        rank = min(layer.out_features, layer.in_features)
        first = nn.Linear(layer.in_features, rank, bias=False)
        last = nn.Linear(rank, layer.out_features, bias=bias)
    scale = Scale(rank, spatial=not isinstance(layer, nn.Linear))
    return ThreeLayers(first.requires_grad_(False), scale, last.requires_grad_(False)).to("meta")
