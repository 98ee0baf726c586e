"""Forms of the adapted layer: `W' x` with the weight rebuilt, or as three factors, whichever costs least.

The functions here turn a plain layer, an input and the change of its weight into an output; they know nothing of
adapters. The change is a list of `Factors`, the sum of their products.

- **rebuilt**: `W + change` is formed in every step and the plain layer computes with it. Always possible; with a
  change of zero it is the plain layer bit for bit.
- **factored**: `U (p * (Vh x)) + bias`, possible where the base weight is `U diag(p0) Vh`. `z = Vh x` is the only
  activation that is kept. Terms that pair two bases, `c u_i v_j^T`, read the same z; terms along other directions
  are computed beside it, `A (c * (B x))`. Where x needs no gradient, the backward pass is one product per
  position, dy times z, (out, rank), and nothing is computed for `Vh`; the gradient of the plain layer's weight would
  be (out, fan_in). Differs from the plain layer by rounding, about 3e-7 in float32. Double backward, vmap, autocast and
  torch.compile work as they do in plain autograd.

Inputs are (..., in) for linear layers and ([N], in, H, W) for convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from .config import Form
from .factors import Factors, Inside, unfold, weight_change

# The choice of the form


def adapted(
    base: nn.Module,
    x: Tensor,
    terms: Sequence[Factors],
    *,
    fan_in_fan_out: bool,
    inside: Inside | None = None,
    beside: Sequence[Factors] = (),
    form: Form = "auto",
) -> Tensor:
    """Compute the output of a layer whose weight is changed by `terms`, differentiable in x and in the terms.

    Args:
        base: The plain layer.
        x: Its input.
        terms: The change of its weight.
        fan_in_fan_out: The weight is stored as (in, out).
        inside: The changed weight along the layer's bases, without the terms of `beside`; None rules the factored form
            out.
        beside: Those of the terms whose directions are none of the layer's bases.
        form: Which form to use; `"auto"` decides by `cheaper_form` where a gradient of the coefficients is wanted
            and the weight is not in half precision, and rebuilds otherwise.
    """
    if inside is not None and _use_factors(base, x, terms, inside, beside, form):
        return _by_factors(base, x, inside, beside)
    return with_weight(base, x, rebuilt_weight(_tensor(base.weight), terms, fan_in_fan_out=fan_in_fan_out))


def _use_factors(
    base: nn.Module, x: Tensor, terms: Sequence[Factors], inside: Inside, beside: Sequence[Factors], form: Form
) -> bool:
    if form != "auto":
        return form == "factored"
    # Without a gradient nothing is gained. In half precision a weight formed in float32 and rounded once is best.
    trained = torch.is_grad_enabled() and any(term.p.requires_grad for term in terms)
    if not trained or _tensor(base.weight).dtype.itemsize < 4:
        return False
    # Forward-mode differentiation and tracing know no custom functions. torch has no public name for the former.
    forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    if not torch.compiler.is_compiling() and (torch.jit.is_tracing() or forward_mode):
        return False
    rank, fan_in = inside.vh.shape
    if isinstance(base, nn.Conv2d):
        positions = x.shape[:-3].numel() * x.shape[-2] * x.shape[-1] // (base.stride[0] * base.stride[1])
    else:
        positions = x.shape[:-1].numel()
    cheaper = cheaper_form(
        len(inside.u),
        fan_in,
        rank + _directions(beside),
        positions,
        input_grad=x.requires_grad,
        changed=_directions(terms),
    )
    return cheaper == "factored"


def _directions(terms: Sequence[Factors]) -> int:
    return sum(len(term.vh) for term in terms)


def adapted_by_sample(
    base: nn.Module,
    x: Tensor,
    terms: Sequence[Factors],
    *,
    inside: Inside | None = None,
    beside: Sequence[Factors] = (),
) -> Tensor:
    """Compute as `adapted`, with coefficients of their own for every sample of the batch: p of a term is (N, k).

    One pass for the whole batch, not one rebuilt weight for each adapter: `U (p_n * (Vh x_n))` where `inside` is
    known and that is cheaper, else `base(x) + U (change_n * (Vh x_n))`. Needs a convolution without groups.
    """
    if inside is not None:
        out, fan_in = len(inside.u), inside.vh.shape[1]
        by_factors = (len(inside.vh) + _directions(beside)) * (fan_in + out)
        if by_factors <= out * fan_in + _directions(terms) * (fan_in + out):
            return _by_factors(base, x, inside, beside)
    return _add_along(base, x, base(x), terms)


def from_projection(base: nn.Module, z: Tensor, inside: Inside) -> Tensor:
    """Go on from `z = Vh x`, computed before: ([N], r, H, W) for convolutions, else (..., r)."""
    return _combine(z, _left(inside), _bias(base), _channels(base))


def cheaper_form(
    out: int, fan_in: int, rank: int, positions: int, *, input_grad: bool, changed: int | None = None
) -> Literal["factored", "rebuilt"]:
    """Choose the form that takes fewer products in a training step, forward and backward.

    Per position, with O = out, C = fan_in, r = rank, and in the rebuilding OkC with k = changed:

    | form     | forward              | backward, x frozen   | backward, x with grad  |
    |----------|----------------------|----------------------|------------------------|
    | rebuilt  | OC + OkC / positions | OC + OkC / positions | 2 OC + OkC / positions |
    | factored | r (C + O)            | r O                  | r (C + O)              |

    Args:
        out, fan_in: Shape of the weight as a matrix.
        rank: Number of directions that the factored form takes the input along.
        positions: Outputs of the layer for all samples together: tokens, or pixels.
        input_grad: Whether the layer's input needs a gradient.
        changed: Number of rank-one terms that make up the change of the weight; None for `rank`.

    Example:
        >>> cheaper_form(256, 768, 256, 64 * 64, input_grad=False)  # conv1 of SAM ViT-B's neck
        'factored'
        >>> cheaper_form(768, 768, 768, 64 * 64, input_grad=False)  # a square linear layer
        'rebuilt'
    """
    rebuilding = out * (rank if changed is None else changed) * fan_in / max(1, positions)
    if input_grad:
        by_factors, by_weight = 2 * rank * (fan_in + out), 3 * out * fan_in + 2 * rebuilding
    else:
        by_factors, by_weight = rank * (fan_in + 2 * out), 2 * out * fan_in + 2 * rebuilding
    return "factored" if by_factors < by_weight else "rebuilt"


# Rebuilt


def change_of(terms: Sequence[Factors], shape: torch.Size, *, fan_in_fan_out: bool) -> Tensor:
    """Form the change of the weight, in the weight's shape and in float32 or wider."""
    change = weight_change(*terms[0])
    for term in terms[1:]:
        change = change + weight_change(*term)
    return unfold(change, shape, fan_in_fan_out=fan_in_fan_out)


def rebuilt_weight(weight: Tensor, terms: Sequence[Factors], *, fan_in_fan_out: bool) -> Tensor:
    """Form `weight + change`, added in float32 or wider and rounded once to the weight's dtype.

    Terms that sum to zero give back the weight bit for bit.
    """
    change = change_of(terms, weight.shape, fan_in_fan_out=fan_in_fan_out)
    return (weight.to(change.dtype) + change).to(weight.dtype)


def with_weight(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the output of a plain layer with another weight in the place of its own."""
    if isinstance(base, nn.Conv2d):
        # Takes care of stride, padding, padding mode, dilation and groups.
        return base._conv_forward(x, weight, base.bias)
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, base.bias)
    # transformers' Conv1D keeps its weight as (in, out), and computes this very product.
    flat = torch.addmm(_tensor(base.bias), x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], weight.shape[1])


# Factored


def factored(base: nn.Module, x: Tensor, u: Tensor, p: Tensor, vh: Tensor) -> Tensor:
    """Compute the output of `base` with the weight `U diag(p) Vh`, differentiable in x and p.

    u (out, r), p (r,) or, for each sample, (N, r), vh (r, fan_in). Convolutions must have one group.
    """
    return _by_factors(base, x, Inside(u, p, vh), ())


def _by_factors(base: nn.Module, x: Tensor, inside: Inside, beside: Sequence[Factors]) -> Tensor:
    y = _combine(along(base, x, inside.vh), _left(inside), _bias(base), _channels(base))
    return _add_along(base, x, y, beside)


def _left(inside: Inside) -> Tensor:
    """Form `L` of the weight `L Vh`: (out, r), or (N, out, r) with numbers for each sample."""
    left = inside.u * inside.p[..., None, :]
    if inside.c is None or inside.rows is None or inside.columns is None:
        return left
    pairs = inside.u[:, inside.rows] * inside.c[..., None, :]
    return left.index_add(-1, inside.columns, pairs.to(left.dtype))


def _add_along(base: nn.Module, x: Tensor, y: Tensor, terms: Sequence[Factors]) -> Tensor:
    """Add what the terms give for x to an output y."""
    for term in terms:
        y = y + combine(along(base, x, term.vh), term.u, term.p, None, channels=_channels(base))
    return y


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
        return base._conv_forward(x, kernel, None)
    return _FrozenConvolution.apply(x, kernel, base.stride, base.padding, base.dilation)


def combine(z: Tensor, u: Tensor, p: Tensor, bias: Tensor | None, *, channels: int) -> Tensor:
    """Compute `y = U (p * z) + bias`, keeping z alone for the backward pass.

    z: r channels in dimension `channels`, -1 or -3; u (out, r); p (r,), or (N, r) with coefficients of its own for
    each sample, dimension 0 of z.
    """
    return _combine(z, u * p[..., None, :], bias, channels)


def _combine(z: Tensor, left: Tensor, bias: Tensor | None, channels: int) -> Tensor:
    """`L z + bias`, with a left factor L (out, r), or (N, out, r) with one for each sample."""
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
    if x.ndim == 4 and x.permute(0, 2, 3, 1).is_contiguous():
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
    if z.ndim == 4 and z.permute(0, 2, 3, 1).is_contiguous():
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
