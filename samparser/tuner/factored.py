"""A layer as three factors that autograd differentiates at the cost of the coefficients alone.

``y = U (p * (Vh x)) + bias``, with ``z = Vh x`` the only activation that is kept. Where x needs no gradient, the
backward pass is one product per position, dy times z, (out, rank), and nothing is computed for ``Vh``; the gradient of
the plain layer's weight would be (out, fan_in). Double backward, vmap, autocast and torch.compile work as they do in
plain autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input


def factored(base: nn.Module, x: Tensor, u: Tensor, p: Tensor, vh: Tensor) -> Tensor:
    """The output of ``base`` with the weight ``U diag(p) Vh``, differentiable in x and p.

    x: (..., in) for linear layers, ([N], in, H, W) for convolutions, which must have one group. u (out, r), p (r,),
    vh (r, fan_in).
    """
    return combine(along(base, x, vh), u, p, base.bias, channels=-3 if isinstance(base, nn.Conv2d) else -1)  # type: ignore[arg-type]


def along(base: nn.Module, x: Tensor, vh: Tensor) -> Tensor:
    """``z = Vh x``: the input along the frozen directions, where the layer has its outputs.

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
    if not x.requires_grad or base.padding_mode != "zeros" or isinstance(base.padding, str) or x.ndim != 4:
        return base._conv_forward(x, kernel, None)
    return _FrozenConvolution.apply(x, kernel, base.stride, base.padding, base.dilation)


def combine(z: Tensor, u: Tensor, p: Tensor, bias: Tensor | None, *, channels: int) -> Tensor:
    """``y = U (p * z) + bias``, keeping z alone for the backward pass.

    z: r channels in dimension ``channels``, -1 or -3; u (out, r); p (r,), or (N, r) with coefficients of its own for
    each sample, dimension 0 of z.
    """
    if p.ndim == 2:
        y = _combine_by_sample(z, u, p, channels)
        return y if bias is None else y + _along_channels(bias.to(y.dtype), channels)
    return _Combine.apply(z, u, p, bias, channels)


def is_pointwise(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is one matrix product per position."""
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding in ((0, 0), "same", "valid")
        and convolution.groups == 1
    )


class _Combine(torch.autograd.Function):
    """``U (p * z) + bias`` with z the only activation kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, u: Tensor, p: Tensor, bias: Tensor | None, channels: int) -> Tensor:
        # Folded at the width of p and rounded once.
        matrix = (u * p).to(z.dtype)
        bias = None if bias is None else bias.to(z.dtype)
        return F.linear(z, matrix, bias) if channels == -1 else _pointwise(z, matrix, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, u, p, bias, ctx.channels = inputs
        ctx.save_for_backward(z, u, p)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of z, coefficients and bias, each where it is asked for; U is frozen."""
        (dy,) = gradients
        z, u, p = ctx.saved_tensors
        dz = dp = dbias = None
        rows = _rows(dy, ctx.channels)
        if ctx.needs_input_grad[2]:
            # sum over positions of (U^T dy) * z, with no activation of rank r in between.
            dp = (u * (rows.transpose(-2, -1) @ _rows(z, ctx.channels)).to(u.dtype)).sum(-2).to(p.dtype)
        if ctx.needs_input_grad[0]:
            matrix = (u * p).to(dy.dtype).T
            dz = F.linear(dy, matrix) if ctx.channels == -1 else _pointwise(dy, matrix)
            dz = dz.to(z.dtype)
        if ctx.needs_input_grad[3]:
            dbias = rows.sum(-2).to(ctx.bias_dtype)
        return dz, None, dp, dbias, None


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
        """The gradient of the input; the kernel is frozen."""
        (dz,) = gradients
        (kernel,) = ctx.saved_tensors
        return conv2d_input(ctx.shape, kernel, dz, *ctx.geometry), None, None, None, None


def _pointwise(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of x ([N], C, H, W) with a matrix (out, C); on channels-last memory one matrix product."""
    if x.ndim == 4 and x.permute(0, 2, 3, 1).is_contiguous():
        return F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
    return F.conv2d(x, matrix[:, :, None, None], bias)


def _rows(t: Tensor, channels: int) -> Tensor:
    """All positions of all samples as rows, (positions, channels)."""
    if channels == -3:
        t = t.movedim(-3, -1)
    return t.reshape(-1, t.shape[-1])


def _combine_by_sample(z: Tensor, u: Tensor, p: Tensor, channels: int) -> Tensor:
    """``U (p_n * z_n)`` for each sample n; the coefficients are folded into one small matrix for each."""
    matrices = (u * p[:, None, :]).to(z.dtype)
    if channels == -1:
        between = z.reshape(len(z), -1, z.shape[-1])
        return (between @ matrices.transpose(1, 2)).view(*z.shape[:-1], -1)
    if z.ndim == 4 and z.permute(0, 2, 3, 1).is_contiguous():
        return _combine_by_sample(z.permute(0, 2, 3, 1), u, p, -1).permute(0, 3, 1, 2)
    return (matrices @ z.flatten(2)).unflatten(2, z.shape[2:])


def _along_channels(bias: Tensor, channels: int) -> Tensor:
    return bias if channels == -1 else bias[:, None, None]


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
