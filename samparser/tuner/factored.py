"""Factored form of an adapted layer: `U (p * (Vh x)) + bias`, with no gradient of the size of the weight.

`z = Vh x` is the only activation that is kept. Where x needs no gradient, the backward pass is one product per
position, dy times z, (out, rank), and nothing is computed for `Vh`; the gradient of the plain layer's weight would be
(out, fan_in). Terms that pair two bases, `c u_i v_j^T`, read the same z; terms along other directions are computed
beside it, `A (c * (B x))`. Differs from the plain layer by rounding, about 3e-7 in float32. Double backward, vmap,
autocast and torch.compile work as they do in plain autograd. The rows of a transposed convolution's weight are inputs,
so there it is `Vh^T (p * (U^T x)) + bias`, possible where blocks do not overlap: see `samparser.tuner.transposed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from . import transposed
from .factors import Factors, Inside
from .transposed import has_channels_last


def has_factors(base: nn.Module, x: Tensor, output_size: Sequence[int] | None = None) -> bool:
    """Tell whether a layer is one matrix, the same at every position, so that its factors can stand for it."""
    if isinstance(base, nn.ConvTranspose2d):
        return transposed.gives_blocks(base, x, output_size)
    return getattr(base, "groups", 1) == 1


def by_factors(base: nn.Module, x: Tensor, inside: Inside, beside: Sequence[Factors] = ()) -> Tensor:
    """Compute the output of `base` with a weight that is written as factors, differentiable in x and in their numbers.

    Args:
        base: The plain layer, one that `has_factors`.
        x: Its input.
        inside: The weight along the layer's bases.
        beside: Terms of the weight along other directions.
    """
    return add_along(base, x, _through(base, x, inside, _bias(base)), beside)


def add_along(base: nn.Module, x: Tensor, y: Tensor, terms: Sequence[Factors]) -> Tensor:
    """Add what the terms give for x to an output y."""
    for term in terms:
        y = y + _through(base, x, Inside(*term), None)
    return y


def _through(base: nn.Module, x: Tensor, inside: Inside, bias: Tensor | None) -> Tensor:
    if not isinstance(base, nn.ConvTranspose2d):
        return combine(along(base, x, inside.vh), _left(inside), bias, channels=_channels(base))
    dtype = _compute_dtype(x)
    z = _pointwise(x.to(dtype), inside.u.T.to(dtype))
    last = has_channels_last(z)
    rows, row_bias = transposed.rows_of_blocks(base, inside.vh, bias, channels_last=last)
    # Turned over: a pair of u_i and v_j takes z_i to the block along v_j.
    turned = Inside(rows, inside.p, inside.u.T, inside.columns, inside.rows, inside.c)
    blocks = combine(z, _left(turned), row_bias, channels=-3)
    return transposed.in_place(base, blocks, channels_last=last)


def from_projection(base: nn.Module, z: Tensor, inside: Inside) -> Tensor:
    """Go on from `z = Vh x`, computed before: ([N], r, H, W) for convolutions, else (..., r)."""
    return combine(z, _left(inside), _bias(base), channels=_channels(base))


def along(base: nn.Module, x: Tensor, vh: Tensor) -> Tensor:
    """Compute `z = Vh x`, the input along the frozen directions, where the layer has its outputs.

    Returns:
        (..., r) for linear layers, ([N], r, H', W') for convolutions; in autocast's dtype where that is on.
    """
    dtype = _compute_dtype(x)
    x, vh = x.to(dtype), vh.to(dtype)
    if not isinstance(base, nn.Conv2d):
        return F.linear(x, vh)
    if is_pointwise(base):
        return _pointwise(x, vh)
    kernel = vh.view(-1, *base.weight.shape[1:])
    # Where its input needs a gradient, torch's own keeps that input as well, for a gradient of the kernel.
    if not x.requires_grad or base.padding_mode != "zeros" or isinstance(base.padding, str) or x.ndim != 4:
        return convolved(base, x, kernel, None)
    return _FrozenConvolution.apply(x, kernel, base.stride, base.padding, base.dilation)


def convolved(base: nn.Conv2d, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a convolution as `base` does, with its stride, padding, padding mode, dilation and groups."""
    return base._conv_forward(x, kernel, bias)


def _left(inside: Inside) -> Tensor:
    """Form `L` of the weight `L Vh`: (out, r), or (N, out, r) with numbers for each sample."""
    left = inside.u * inside.p[..., None, :]
    if inside.c is None or inside.rows is None or inside.columns is None:
        return left
    pairs = inside.u[:, inside.rows] * inside.c[..., None, :]
    if pairs.ndim > left.ndim:  # Numbers for each sample in the pairs alone.
        left = left.expand(len(pairs), *left.shape)
    return left.index_add(-1, inside.columns, pairs.to(left.dtype))


def combine(z: Tensor, left: Tensor, bias: Tensor | None, *, channels: int) -> Tensor:
    """Compute `y = L z + bias`, keeping z alone for the backward pass.

    z: r channels in dimension `channels`, -1 or -3; the left factor L (out, r), or (N, out, r) with one for each
    sample, dimension 0 of z.
    """
    if left.ndim == 3:
        y = _combine_by_sample(z, left.to(z.dtype), channels)
        if bias is None:
            return y
        return y + (bias if channels == -1 else bias[:, None, None]).to(y.dtype)
    return _Combine.apply(z, left, bias, channels)


def is_pointwise(convolution: nn.Conv2d) -> bool:
    """Tell whether a convolution is one matrix product per position."""
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding in ((0, 0), "same", "valid")
        and convolution.groups == 1
    )


class _Combine(torch.autograd.Function):
    """`L z + bias` with z the only activation kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, left: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        # Folded at the width of the coefficients and rounded once.
        matrix = left.to(z.dtype)
        bias = None if bias is None else bias.to(z.dtype)
        return F.linear(z, matrix, bias) if channels == -1 else _pointwise(z, matrix, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, left, bias, ctx.channels = inputs
        ctx.save_for_backward(z, left)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of z, the left factor and the bias, each where it is asked for."""
        (dy,) = gradients
        z, left = ctx.saved_tensors
        dz = dleft = dbias = None
        rows = _rows(dy, ctx.channels)
        if ctx.needs_input_grad[1]:
            # A sum over positions, with no activation of rank r in between.
            dleft = (rows.transpose(-2, -1) @ _rows(z, ctx.channels)).to(left.dtype)
        if ctx.needs_input_grad[0]:
            matrix = left.to(dy.dtype).T
            dz = F.linear(dy, matrix) if ctx.channels == -1 else _pointwise(dy, matrix)
            dz = dz.to(z.dtype)
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(-2).to(ctx.bias_dtype)
        return dz, dleft, dbias, None


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose kernel is never differentiated, so that its input need not be kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return F.conv2d(x, kernel, None, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, kernel, *ctx.geometry = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of the input; the kernel is frozen."""
        (dz,) = gradients
        (kernel,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, kernel, dz, *ctx.geometry), None, None, None, None


def _pointwise(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of x ([N], C, H, W) with a matrix (out, C); on channels-last memory one matrix product."""
    if has_channels_last(x):
        return F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
    return F.conv2d(x, matrix[:, :, None, None], bias)


def _rows(t: Tensor, channels: int) -> Tensor:
    """All positions of all samples as rows, (positions, channels)."""
    if channels == -3:
        t = t.movedim(-3, -1)
    return t.reshape(-1, t.shape[-1])


def _combine_by_sample(z: Tensor, matrices: Tensor, channels: int) -> Tensor:
    """`L_n z_n` for each sample n, with one small matrix for each, (N, out, r)."""
    if channels == -1:
        between = z.reshape(len(z), -1, z.shape[-1])
        return (between @ matrices.transpose(1, 2)).view(*z.shape[:-1], -1)
    if has_channels_last(z):
        return _combine_by_sample(z.permute(0, 2, 3, 1), matrices, -1).permute(0, 3, 1, 2)
    return (matrices @ z.flatten(2)).unflatten(2, z.shape[2:])


def _channels(base: nn.Module) -> int:
    """The dimension of a layer's output that the rows of its weight make."""
    return -3 if isinstance(base, nn.Conv2d) else -1


def _bias(base: nn.Module) -> Tensor | None:
    return None if base.bias is None else _tensor(base.bias)


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _tensor(value: Tensor | nn.Module) -> Tensor:
    assert isinstance(value, Tensor)
    return value
