"""Transposed convolutions: with another kernel, and as one product per position where their blocks do not overlap.

A transposed convolution gives each position of its input a block of outputs. Where the kernel is as large as the
stride, and nothing is padded, dilated or grouped, no two blocks overlap: the layer is the linear map from the channels
of a position to its block. With the weight read as a matrix `W` (in, out * kh * kw), rows are inputs, so the layer
computes `W^T x` at each position, and with `W = U diag(p) Vh`

    y = Vh^T (p * (U^T x))                 all at the small size; then every block is put in its place

The singular values of W are those of the layer itself. All published SAMs enlarge in this way, by 2 x 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# A product of torch's transposed convolution costs as much as this many of a matrix product: two to four on CPUs.
COST_OF_A_PRODUCT = 2.0


def with_kernel(base: nn.ConvTranspose2d, x: Tensor, kernel: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """Compute the output of a transposed convolution with another kernel, (in, out/groups, kh, kw)."""
    added = _output_padding(base, x, output_size)
    geometry = (base.stride, _pair(base.padding), added, base.groups, base.dilation)
    return F.conv_transpose2d(x, kernel, base.bias, *geometry)


def gives_blocks(base: nn.ConvTranspose2d, x: Tensor, output_size: Sequence[int] | None = None) -> bool:
    """Tell whether the output is one block for each position of x ([N], in, H, W), none of which overlap."""
    return (
        base.kernel_size == base.stride
        and (base.padding, base.dilation, base.groups) == ((0, 0), (1, 1), 1)
        and not any(_output_padding(base, x, output_size))
    )


def _output_padding(base: nn.ConvTranspose2d, x: Tensor, output_size: Sequence[int] | None) -> list[int]:
    """Rows and columns that are added so that the output has the size that was asked for.

    Raises:
        ValueError: The layer cannot give an output of that size.
    """
    size = None if output_size is None else list(output_size)
    stride, padding, kernel, dilation = map(_pair, (base.stride, base.padding, base.kernel_size, base.dilation))
    return list(base._output_padding(x, size, stride, padding, kernel, 2, dilation))


def _pair(numbers: Any) -> list[int]:
    return [int(number) for number in numbers]


def rows_of_blocks(
    base: nn.ConvTranspose2d, vh: Tensor, bias: Tensor | None, *, channels_last: bool
) -> tuple[Tensor, Tensor | None]:
    """Arrange frozen directions Vh (r, out * kh * kw), and the bias, as the rows of one product per position.

    With `channels_last`, all channels of an output position stay together, so that blocks are put in place in whole
    runs where memory has that order. Else the rows are in the order of the kernel.

    Returns:
        The matrix (out * kh * kw, r) and a bias (out * kh * kw,).
    """
    area = base.kernel_size[0] * base.kernel_size[1]
    if not channels_last:
        return vh.T, None if bias is None else bias.repeat_interleave(area)
    rows = vh.view(len(vh), base.out_channels, area).permute(2, 1, 0).reshape(-1, len(vh))
    return rows, None if bias is None else bias.repeat(area)


def in_place(base: nn.ConvTranspose2d, blocks: Tensor, *, channels_last: bool) -> Tensor:
    """Put blocks ([N], out * kh * kw, H, W), rows as `rows_of_blocks` has them, in place: ([N], out, H * kh, W * kw).

    The result has its channels last in memory where `channels_last` says so.
    """
    (kh, kw), out = base.kernel_size, base.out_channels
    *batch, _, height, width = blocks.shape
    if channels_last:
        split = blocks.movedim(-3, -1).reshape(*batch, height, width, kh, kw, out).transpose(-3, -4)
        return split.reshape(*batch, height * kh, width * kw, out).movedim(-1, -3)
    split = blocks.reshape(*batch, out, kh, kw, height, width).movedim((-4, -3), (-3, -1))
    return split.reshape(*batch, out, height * kh, width * kw)


def has_channels_last(x: Tensor) -> bool:
    """Tell whether a batch of images (N, C, H, W) has its channels last in memory."""
    return x.ndim == 4 and x.permute(0, 2, 3, 1).is_contiguous()
