"""The upscaling in SAM's mask decoder as matrix products, which trains faster and gives the same masks.

The decoder enlarges the image embedding four times by two transposed convolutions of kernel 2 and stride 2. Such a
convolution gives each position a block of 2 x 2 new ones, which no other position touches: it is one product over
channels. All that happens between it and the masks happens at each position alone, so the blocks may stay side by side,
in the order in which the product writes them, and only the masks are put in order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .switched_class import is_switched_here, plain_class


def has_plain_upscaling(module: Any) -> bool:
    """Return whether a module is transformers' SamMaskDecoder, and its upscaling SAM's, without an adapter."""
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    return (
        plain_class(module) is SamMaskDecoder
        and plain_class(module.activation) is nn.GELU
        and all(
            plain_class(conv) is nn.ConvTranspose2d
            and conv.bias is not None
            and (conv.kernel_size, conv.stride, conv.padding) == ((2, 2), (2, 2), (0, 0))
            and (conv.output_padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
            for conv in (module.upscale_conv1, module.upscale_conv2)
        )
    )


def upscaling_classes(decoder: Any) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Return the modules of a decoder with plain upscaling that take part in it, and the class to give to each."""
    return [
        (decoder, _decoder_class()),
        (decoder.upscale_conv1, _BlockConvTranspose),
        (decoder.upscale_conv2, _BlockConvTranspose),
        (decoder.activation, _ChannelsLastGELU),
    ]


class _BlockConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of kernel and stride 2 whose 2 x 2 blocks follow one another.

    The result has the shape (b, c, 2h, 2w) of the convolution's, but in memory position (y, x) of the input is followed
    by its four new ones, then by those of the next position.
    """

    plain_class = nn.ConvTranspose2d

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not is_switched_here(self):
            return nn.ConvTranspose2d.forward(self, input, output_size)
        assert self.bias is not None
        batch, channels, height, width = input.shape
        rows = input.permute(0, 2, 3, 1).reshape(-1, channels)
        weight = self.weight.permute(2, 3, 1, 0).reshape(-1, channels)
        blocks = F.linear(rows, weight, self.bias.repeat(4))
        return blocks.view(batch, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)


class _ChannelsLastGELU(nn.GELU):
    """GELU whose backward pass gets its gradient in the order of its input.

    The product with the hypernetworks' output gives it with channels first, and over two different orders torch takes
    the derivative three times as slowly.
    """

    plain_class = nn.GELU

    def forward(self, input: Tensor) -> Tensor:
        activated = nn.GELU.forward(self, input)
        return _ChannelsLastGradient.apply(activated) if is_switched_here(self) else activated


class _ChannelsLastGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


@cache
def _decoder_class() -> type[nn.Module]:
    """Return SamMaskDecoder with masks put in order; made when first asked for, since transformers imports slowly."""
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    class BlockMaskDecoder(SamMaskDecoder):
        plain_class = SamMaskDecoder

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            masks, *others = SamMaskDecoder.forward(self, *args, **kwargs)
            return in_order(masks) if is_switched_here(self) else masks, *others

    return BlockMaskDecoder


def in_order(masks: Tensor) -> Tensor:
    """Put masks (..., 4h, 4w) whose pixels lie in blocks of blocks of 2 x 2 row by row, as an image."""
    *leading, height, width = masks.shape
    blocks = masks.reshape(-1, height // 4, width // 4, 2, 2, 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(*leading, height, width)
