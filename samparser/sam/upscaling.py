"""SAM's mask decoder with its upscaling computed as matrix products, which trains faster and gives the same masks.

The decoder enlarges the image embedding four times by two transposed convolutions of kernel 2 and stride 2. Such a
convolution gives each position a block of 2 x 2 new ones, which no other position touches: it is one product over
channels. All that happens between it and the masks happens at each position alone, so the blocks may stay side by side,
in the order in which the product writes them, and only the masks are put in order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def upscaling_by_products(model: nn.Module) -> Iterator[None]:
    """Inside the block the mask decoders within a model enlarge by products instead of transposed convolutions.

    Weights, their names and what is saved stay what they are; masks and gradients are equal up to rounding. A cached
    step of SAM ViT-B takes about a fifth less time on a CPU, see ``docs/speed.md``. Decoders whose upscaling is not as
    in SAM, or carries an adapter, are left alone.
    """
    changed = []
    for decoder in [module for module in model.modules() if _is_plain(module)]:
        for module, lean in (
            (decoder, _decoder_class()),
            (decoder.upscale_conv1, _BlockConvTranspose),
            (decoder.upscale_conv2, _BlockConvTranspose),
            (decoder.activation, _ChannelsLastGELU),
        ):
            changed.append((module, type(module)))
            module.__class__ = lean  # a class, not a method on the instance: replicas and copies keep it
    try:
        yield
    finally:
        for module, plain in changed:
            module.__class__ = plain


def _is_plain(module: Any) -> bool:
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    return (
        type(module) is SamMaskDecoder
        and type(module.activation) is nn.GELU
        and all(
            type(conv) is nn.ConvTranspose2d
            and conv.bias is not None
            and (conv.kernel_size, conv.stride, conv.padding) == ((2, 2), (2, 2), (0, 0))
            and (conv.output_padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
            for conv in (module.upscale_conv1, module.upscale_conv2)
        )
    )


class _BlockConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution of kernel and stride 2 whose 2 x 2 blocks follow one another.

    The result has the shape (b, c, 2h, 2w) of the convolution's, but in memory position (y, x) of the input is followed
    by its four new ones, then by those of the next position.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
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

    def forward(self, input: Tensor) -> Tensor:
        return _ChannelsLastGradient.apply(super().forward(input))


class _ChannelsLastGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


@cache
def _decoder_class() -> type[nn.Module]:
    """SamMaskDecoder that puts its masks in order; made when first asked for, since transformers imports slowly."""
    from transformers.models.sam.modeling_sam import SamMaskDecoder

    class BlockMaskDecoder(SamMaskDecoder):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            masks, *others = super().forward(*args, **kwargs)
            return in_order(masks), *others

    return BlockMaskDecoder


def in_order(masks: Tensor) -> Tensor:
    """Masks (..., 4h, 4w) whose pixels lie in blocks of blocks of 2 x 2, row by row as an image."""
    *leading, height, width = masks.shape
    blocks = masks.reshape(-1, height // 4, width // 4, 2, 2, 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(*leading, height, width)
