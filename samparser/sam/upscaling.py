"""The upscaling in mask decoders as matrix products, which trains faster and gives the same masks.

A mask decoder enlarges the image embedding four times by two transposed convolutions of kernel 2 and stride 2. Such a
convolution gives each position a block of 2 x 2 new ones, which no other position touches: it is one product over
channels. In SAM, all that happens between it and the masks happens at each position alone, so the blocks may stay side
by side, in the order in which the product writes them, and only the masks are put in order. SAM 2, EdgeTAM and SAM 3
add two maps of the neck on the way, which are put in the order of the blocks. SAM-HQ has three such upscalings, and
convolutions over neighbours after them: there the blocks are put in order after each.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .switched_class import full_name, is_switched_here, plain_class

_SAM = "transformers.models.sam.modeling_sam.SamMaskDecoder"
_SAM_HQ = "transformers.models.sam_hq.modeling_sam_hq.SamHQMaskDecoder"
_WITH_MAPS = (
    "transformers.models.sam2.modeling_sam2.Sam2MaskDecoder",
    "transformers.models.edgetam.modeling_edgetam.EdgeTamMaskDecoder",
    "transformers.models.sam3_tracker.modeling_sam3_tracker.Sam3TrackerMaskDecoder",
)
_PAIRS = {
    **dict.fromkeys((_SAM, *_WITH_MAPS), (("upscale_conv1", "upscale_conv2"),)),
    _SAM_HQ: (
        ("upscale_conv1", "upscale_conv2"),
        ("encoder_conv1", "encoder_conv2"),
        ("compress_vit_conv1", "compress_vit_conv2"),
    ),
}
"""The upscalings of each mask decoder in transformers: the names of their two convolutions."""


def has_plain_upscaling(module: Any) -> bool:
    """Return whether a module is a mask decoder of transformers whose upscalings are SAM's, without an adapter."""
    pairs = _PAIRS.get(full_name(plain_class(module)))
    return (
        pairs is not None
        and plain_class(module.activation) is nn.GELU
        and all(
            plain_class(conv) is nn.ConvTranspose2d
            and conv.bias is not None
            and (conv.kernel_size, conv.stride, conv.padding) == ((2, 2), (2, 2), (0, 0))
            and (conv.output_padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1)
            for pair in pairs
            for conv in (getattr(module, name) for name in pair)
        )
    )


def upscaling_classes(decoder: Any) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Return the modules of a decoder with plain upscaling that take part in it, and the class to give to each."""
    name = full_name(plain_class(decoder))
    last = _OrderedConvTranspose if name == _SAM_HQ else _BlockConvTranspose
    classes: list[tuple[nn.Module, type[nn.Module]]] = [(decoder.activation, _ChannelsLastGELU)]
    for one, two in _PAIRS[name]:
        classes += [(getattr(decoder, one), _BlockConvTranspose), (getattr(decoder, two), last)]
    if name != _SAM_HQ:
        classes.append((decoder, _decoder_class(plain_class(decoder))))
    return classes


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


class _OrderedConvTranspose(_BlockConvTranspose):
    """The second transposed convolution of an upscaling: takes blocks and gives an image, channels last in memory."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        blocks = _BlockConvTranspose.forward(self, input, output_size)
        if not is_switched_here(self):
            return blocks
        batch, channels, height, width = blocks.shape
        split = blocks.permute(0, 2, 3, 1).reshape(batch, height // 4, width // 4, 2, 2, 2, 2, channels)
        return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, height, width, channels).permute(0, 3, 1, 2)


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
def _decoder_class(plain: Any) -> type[nn.Module]:
    """Return a class of mask decoders with maps of the neck put in blocks, and masks put in order."""
    signature, maps = inspect.signature(plain.forward), "high_resolution_features"

    class BlockMaskDecoder(plain):
        plain_class = plain

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not is_switched_here(self):
                return plain.forward(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            if maps in bound.arguments:
                bound.arguments[maps] = _maps_in_blocks(bound.arguments[maps])
            masks, *others = plain.forward(*bound.args, **bound.kwargs)
            return in_order(masks), *others

    return BlockMaskDecoder


def _maps_in_blocks(maps: Sequence[Tensor]) -> list[Tensor]:
    """Put the maps of both steps, (b, c, 4h, 4w) and (b, c', 2h, 2w), in the order of the blocks that they meet."""
    fine, coarse = maps
    return [in_blocks(fine, 2), in_blocks(coarse, 1)]


def in_order(masks: Tensor) -> Tensor:
    """Put masks (..., 4h, 4w) whose pixels lie in blocks of blocks of 2 x 2 row by row, as an image."""
    *leading, height, width = masks.shape
    blocks = masks.reshape(-1, height // 4, width // 4, 2, 2, 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(*leading, height, width)


def in_blocks(image: Tensor, steps: int) -> Tensor:
    """Put an image (b, c, H, W) in the order in which so many enlargements write it, channels last in memory."""
    batch, channels, height, width = image.shape
    twos, sides = [2] * steps, (height >> steps, width >> steps)
    split = image.reshape(batch, channels, sides[0], *twos, sides[1], *twos)
    # Axes of rows and columns in turn: the position in the small image, then that in each block.
    turns = [axis for step in range(steps + 1) for axis in (2 + step, 3 + steps + step)]
    return split.permute(0, *turns, 1).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
