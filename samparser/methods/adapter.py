"""Bottleneck adapters between the attention of a transformer layer and the LayerNorm after it: the methods."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .adapted_layers import adapted_layer
from .registry import method
from .sam_parts import attention_layers, mask_decoder, plain_linear

# Deviation of the weights of Houlsby et al.'s adapter at the start; the paper cuts the normal at two of them.
_DEVIATION = 0.01
_NOT_MERGEABLE = (
    "a bottleneck adapter has a nonlinearity between its two projections, so no weight of the base model can take it "
    "in; use the tuned model as it is"
)


class HoulsbyAdapter(nn.Module):
    """The plain bottleneck of Houlsby et al., `x + up(relu(down(x)))`, close to the identity at the start.

    Weights start normal with deviation 0.01, cut at two deviations, and biases at zero, as in the paper
    (https://arxiv.org/abs/1902.00751). Computed in the dtype of its weights, float32 at least.

    Args:
        width: Channels of the tokens.
        bottleneck: Channels between the two projections.
    """

    def __init__(self, width: int, bottleneck: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, device=device, dtype=dtype)
        self.up = nn.Linear(bottleneck, width, device=device, dtype=dtype)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=_DEVIATION, a=-2 * _DEVIATION, b=2 * _DEVIATION)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., width) to tokens of the same shape."""
        return x + self.up(torch.relu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


class ConvolutionalAdapter(nn.Module):
    """Bottleneck with a depthwise convolution over the grid of tokens, `x + up(relu(conv(down(x))))`.

    Neither projection has a bias, the convolution has one. `up` starts at zero, so the adapter starts as the
    identity. Computed in the dtype of its weights, float32 at least.

    Args:
        width: Channels of the tokens.
        bottleneck: Channels between the two projections.
        kernel: Side of the convolution's kernel, odd.
    """

    def __init__(self, width: int, bottleneck: int, kernel: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias=False, device=device, dtype=dtype)
        self.conv = nn.Conv2d(
            bottleneck, bottleneck, kernel, padding=kernel // 2, groups=bottleneck, device=device, dtype=dtype
        )
        self.up = nn.Linear(bottleneck, width, bias=False, device=device, dtype=dtype)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, width) to tokens of the same shape."""
        narrow = self.down(x.to(self.down.weight.dtype)).permute(0, 3, 1, 2)
        return x + self.up(torch.relu(self.conv(narrow)).permute(0, 2, 3, 1)).to(x.dtype)


@method(
    "adapter",
    summary="bottleneck with a 5x5 depthwise convolution in every transformer layer, and the mask decoder",
    trains_upstream=True,
    paper='"Adapter" of Tables 3 to 5: +3514.5 K parameters and +14.7 G of Table 4',
    not_mergeable_because=_NOT_MERGEABLE,
)
def adapter(model: nn.Module, bottleneck: int = 192, kernel: int = 5, decoder: bool = True) -> nn.Module:
    """Insert the adapter that has exactly the cost the paper prints: 3,598,848 parameters, +14.73 GMAC on ViT-B.

    The paper describes two linear layers and a ReLU between attention and LayerNorm, which cannot have 3514.5 K
    parameters; 12 bottlenecks 768 -> 192 -> 768 without bias around a 5x5 depthwise convolution with bias do, and
    have its FLOPs too, on the whole grid of 64 x 64 tokens. `bottleneck` is that of the widest layer: where layers
    differ in width, as in SAM 2, narrower ones get as much less. `decoder`: also train the mask decoder.
    """
    _check_bottleneck(bottleneck)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"The kernel of the adapter's convolution is {kernel}; it must be odd (the paper's is 5).")
    _insert(
        model,
        "adapter",
        bottleneck,
        lambda width, narrow, device, dtype: ConvolutionalAdapter(width, narrow, kernel, device, dtype),
    )
    mask_decoder(model).requires_grad_(decoder)
    return model


@method(
    "adapter-houlsby",
    summary="plain bottleneck of Houlsby et al. in every transformer layer, and the mask decoder",
    trains_upstream=True,
    paper="the adapter as section 3.1 describes it",
    not_mergeable_because=_NOT_MERGEABLE,
)
def adapter_houlsby(model: nn.Module, bottleneck: int = 192, decoder: bool = True) -> nn.Module:
    """Insert Houlsby et al.'s adapter, one to a layer, between attention and LayerNorm as the paper says.

    Houlsby et al. put a second one after the MLP and use a bottleneck of 64 and less; here the default is the 192 of
    the method `adapter`, which makes the two comparable: 3,550,464 parameters on ViT-B. `bottleneck` and `decoder` as
    for `adapter`.
    """
    _check_bottleneck(bottleneck)
    _insert(model, "adapter-houlsby", bottleneck, HoulsbyAdapter)
    mask_decoder(model).requires_grad_(decoder)
    return model


def _insert(
    model: nn.Module, method: str, bottleneck: int, make: Callable[[int, int, torch.device, torch.dtype], nn.Module]
) -> None:
    """Put adapters into all transformer layers; `make` gets width, bottleneck, device and dtype."""
    sites = attention_layers(model, method)
    outputs = [plain_linear(site, "out", method) for site in sites]
    widest = max(linear.out_features for linear in outputs)
    for site, linear in zip(sites, outputs, strict=True):
        width = linear.out_features
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        adapter = make(width, math.ceil(bottleneck * width / widest), linear.weight.device, dtype)
        name = site.layer_name
        model.set_submodule(name, adapted_layer(name, model.get_submodule(name), adapter))


def _check_bottleneck(bottleneck: int) -> None:
    if bottleneck < 1:
        raise ValueError(f"The adapter's bottleneck is {bottleneck}; it must be 1 or more (the paper's is 192).")
