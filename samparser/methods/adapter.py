"""Bottleneck adapters between the attention of a transformer layer and the LayerNorm after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamVisionLayer

from .registry import method
from .sam_parts import fused_projections, mask_decoder, transformer_layers

# Deviation of the weights of Houlsby et al.'s adapter at the start; the paper cuts the normal at two of them.
_DEVIATION = 0.01
_NOT_MERGEABLE = (
    "a bottleneck adapter has a nonlinearity between its two projections, so no weight of the base model can take it "
    "in; use the tuned model as it is"
)


class AdaptedVisionLayer(SamVisionLayer):
    """A transformer layer of SAM's image encoder with an adapter on the output of its attention.

        h = x + adapter(attention(norm1(x))),    y = h + mlp(norm2(h))

    The adapter sees the whole grid of tokens, (B, H, W, C), also where the attention works in windows: a convolution
    in it crosses the windows' borders, and no work is spent on the windows' padding.

    transformers recognises the layers whose outputs it records, and recomputes under gradient checkpointing, by their
    class; therefore this is a subclass. The parts of the given layer keep their names.
    """

    def __init__(self, layer: SamVisionLayer, adapter: nn.Module) -> None:
        nn.Module.__init__(self)
        for name, part in layer.named_children():
            setattr(self, name, part)
        self.window_size = layer.window_size
        self.adapter = adapter
        for name in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            if name in vars(layer):
                setattr(self, name, getattr(layer, name))
        self.train(layer.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to tokens of the same shape."""
        tokens = self.layer_norm1(hidden_states)
        if self.window_size:
            windows, padded = self.window_partition(tokens, self.window_size)
            attended, _ = self.attn(hidden_states=windows)
            attended = self.window_unpartition(attended, self.window_size, padded, tuple(tokens.shape[1:3]))
        else:
            attended, _ = self.attn(hidden_states=tokens)
        hidden_states = hidden_states + self.adapter(attended)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


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
    have its FLOPs too, on the whole grid of 64 x 64 tokens. `decoder`: also train the mask decoder.
    """
    _check_bottleneck(bottleneck)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"The kernel of the adapter's convolution is {kernel}; it must be odd (the paper's is 5).")
    _insert(model, lambda width, device, dtype: ConvolutionalAdapter(width, bottleneck, kernel, device, dtype))
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
    the method `adapter`, which makes the two comparable: 3,550,464 parameters on ViT-B. `decoder`: also train the
    mask decoder.
    """
    _check_bottleneck(bottleneck)
    _insert(model, lambda width, device, dtype: HoulsbyAdapter(width, bottleneck, device, dtype))
    mask_decoder(model).requires_grad_(decoder)
    return model


def _insert(model: nn.Module, make: Callable[[int, torch.device, torch.dtype], nn.Module]) -> None:
    layers = transformer_layers(model)
    for index, layer in enumerate(layers):
        if type(layer) is not SamVisionLayer:
            raise TypeError(
                f"vision_encoder.layers.{index} is a {type(layer).__name__}; adapters go into the SamVisionLayer of "
                f"a SamModel."
            )
    for index, qkv in enumerate(fused_projections(model)):
        dtype = torch.promote_types(qkv.weight.dtype, torch.float32)
        layers[index] = AdaptedVisionLayer(cast(Any, layers[index]), make(qkv.in_features, qkv.weight.device, dtype))


def _check_bottleneck(bottleneck: int) -> None:
    if bottleneck < 1:
        raise ValueError(f"The adapter's bottleneck is {bottleneck}; it must be 1 or more (the paper's is 192).")
