"""Forms of the adapted layer: `W' x` with the weight rebuilt, or as three factors, whichever costs least.

The functions here turn a plain layer, an input and the change of its weight into an output; they know nothing of
adapters. The change is a list of `Factors`, the sum of their products.

- **rebuilt**: `W + change` is formed in every step and the plain layer computes with it. Always possible; with a
  change of zero it is the plain layer bit for bit.
- **factored**: `U (p * (Vh x)) + bias`, possible where the base weight is `U diag(p0) Vh` and the only change is of
  p. `z = Vh x` is the only activation that is kept. Where x needs no gradient, the backward pass is one product per
  position, dy times z, (out, rank), and nothing is computed for `Vh`; the gradient of the plain layer's weight would
  be (out, fan_in). Differs from the plain layer by rounding, about 3e-7 in float32. Double backward, vmap, autocast and
  torch.compile work as they do in plain autograd. The rows of a transposed convolution's weight are inputs, so there it
  is `Vh^T (p * (U^T x)) + bias`, possible where blocks do not overlap: see `samparser.tuner.transposed`.

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

from . import transposed
from .config import Form
from .factors import Factors, unfold, weight_change
from .transposed import has_channels_last

# The choice of the form


def adapted(
    base: nn.Module,
    x: Tensor,
    terms: Sequence[Factors],
    *,
    fan_in_fan_out: bool,
    whole: Factors | None = None,
    form: Form = "auto",
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Compute the output of a layer whose weight is changed by `terms`, differentiable in x and in the terms.

    Args:
        base: The plain layer.
        x: Its input.
        terms: The change of its weight.
        fan_in_fan_out: The weight is stored as (in, out).
        whole: The factors of the weight itself, if `terms` is a single one along the same bases (or their leading
            ones); None rules the factored form out.
        form: Which form to use; `"auto"` decides by `cheaper_form` where a gradient of the coefficients is wanted
            and the weight is not in half precision, and rebuilds otherwise.
        output_size: What a transposed convolution takes beside x; see `torch.nn.ConvTranspose2d`.
    """
    if whole is not None and _use_factors(base, x, terms[0].p, whole, form):
        return factored(base, x, whole.u, _moved(whole, terms), whole.vh)
    weight = rebuilt_weight(_tensor(base.weight), terms, fan_in_fan_out=fan_in_fan_out)
    return with_weight(base, x, weight, output_size)


def has_factors(base: nn.Module, x: Tensor, output_size: Sequence[int] | None = None) -> bool:
    """Tell whether a layer is one matrix, the same at every position, so that its factors can stand for it."""
    if isinstance(base, nn.ConvTranspose2d):
        return transposed.gives_blocks(base, x, output_size)
    return getattr(base, "groups", 1) == 1


def _use_factors(base: nn.Module, x: Tensor, p: Tensor, whole: Factors, form: Form) -> bool:
    if form != "auto":
        return form == "factored"
    # Without a gradient nothing is gained. In half precision a weight formed in float32 and rounded once is best.
    if not (torch.is_grad_enabled() and p.requires_grad) or _tensor(base.weight).dtype.itemsize < 4:
        return False
    # Forward-mode differentiation and tracing know no custom functions. torch has no public name for the former.
    forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    if not torch.compiler.is_compiling() and (torch.jit.is_tracing() or forward_mode):
        return False
    rank, fan_in = whole.vh.shape
    out, needs_grad = len(whole.u), x.requires_grad
    if isinstance(base, nn.ConvTranspose2d):
        # The matrix the other way round: from rows, which are inputs, to columns.
        positions, cost = x.shape[:-3].numel() * x.shape[-2:].numel(), transposed.COST_OF_A_PRODUCT
        return cheaper_form(fan_in, out, rank, positions, input_grad=needs_grad, cost=cost) == "factored"
    if isinstance(base, nn.Conv2d):
        positions = x.shape[:-3].numel() * x.shape[-2] * x.shape[-1] // (base.stride[0] * base.stride[1])
    else:
        positions = x.shape[:-1].numel()
    return cheaper_form(out, fan_in, rank, positions, input_grad=needs_grad) == "factored"


def adapted_by_sample(base: nn.Module, x: Tensor, term: Factors, *, whole: Factors | None = None) -> Tensor:
    """Compute as `adapted`, with coefficients of their own for every sample of the batch: term.p is (N, k).

    One pass for the whole batch, not one rebuilt weight for each adapter: `U (p_n * (Vh x_n))` where `whole` is
    known and that is cheaper, else `base(x) + U (change_n * (Vh x_n))`. Needs a layer that `has_factors`.
    """
    if whole is not None:
        out, fan_in = len(whole.u), whole.vh.shape[1]
        if len(whole.vh) * (fan_in + out) <= out * fan_in + len(term.vh) * (fan_in + out):
            return factored(base, x, whole.u, _moved(whole, [term]), whole.vh)
    return base(x) + _through(base, x, *term, bias=None)


def _moved(whole: Factors, terms: Sequence[Factors]) -> Tensor:
    """All coefficients p of a changed weight, (r,), or (N, r) where the change has coefficients for each sample."""
    p = whole.p
    for term in terms:
        p = p + F.pad(term.p, (0, len(whole.vh) - len(term.vh)))
    return p


def from_projection(base: nn.Module, z: Tensor, whole: Factors, changes: Sequence[Factors]) -> Tensor:
    """Go on from `z = Vh x`, computed before: ([N], r, H, W) for convolutions, else (..., r)."""
    return combine(z, whole.u, _moved(whole, changes), _bias(base), channels=_channels(base))


def cheaper_form(
    out: int, fan_in: int, rank: int, positions: int, *, input_grad: bool, cost: float = 1.0
) -> Literal["factored", "rebuilt"]:
    """Choose the form that takes fewer products in a training step, forward and backward.

    Per position, with O = out, C = fan_in, r = rank:

    | form     | forward              | backward, x frozen   | backward, x with grad  |
    |----------|----------------------|----------------------|------------------------|
    | rebuilt  | OC + OrC / positions | OC + OrC / positions | 2 OC + OrC / positions |
    | factored | r (C + O)            | r O                  | r (C + O)              |

    Args:
        out, fan_in: Shape of the weight as a matrix.
        rank: Number of coefficients.
        positions: Outputs of the layer for all samples together: tokens, or pixels.
        input_grad: Whether the layer's input needs a gradient.
        cost: What a product OC of the plain layer costs, over one of a matrix.

    Example:
        >>> cheaper_form(256, 768, 256, 64 * 64, input_grad=False)  # conv1 of SAM ViT-B's neck
        'factored'
        >>> cheaper_form(768, 768, 768, 64 * 64, input_grad=False)  # a square linear layer
        'rebuilt'
    """
    rebuilding = out * rank * fan_in / max(1, positions)
    if input_grad:
        by_factors, by_weight = 2 * rank * (fan_in + out), 3 * cost * out * fan_in + 2 * rebuilding
    else:
        by_factors, by_weight = rank * (fan_in + 2 * out), 2 * cost * out * fan_in + 2 * rebuilding
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


def with_weight(base: nn.Module, x: Tensor, weight: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """Compute the output of a plain layer with another weight in the place of its own.

    Raises:
        TypeError: `output_size` is given and the layer is no transposed convolution.
    """
    if isinstance(base, nn.ConvTranspose2d):
        return transposed.with_kernel(base, x, weight, output_size)
    if output_size is not None:
        raise TypeError(f"output_size={output_size} is for transposed convolutions; this is {base}.")
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

    u (out, r), p (r,) or, for each sample, (N, r), vh (r, fan_in). Needs a layer that `has_factors`.
    """
    return _through(base, x, u, p, vh, bias=_bias(base))


def _through(base: nn.Module, x: Tensor, u: Tensor, p: Tensor, vh: Tensor, *, bias: Tensor | None) -> Tensor:
    if not isinstance(base, nn.ConvTranspose2d):
        return combine(along(base, x, vh), u, p, bias, channels=_channels(base))
    dtype = _compute_dtype(x)
    z = _pointwise(x.to(dtype), u.T.to(dtype))
    last = has_channels_last(z)
    rows, row_bias = transposed.rows_of_blocks(base, vh, bias, channels_last=last)
    return transposed.in_place(base, combine(z, rows, p, row_bias, channels=-3), channels_last=last)


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
    if p.ndim == 2:
        y = _combine_by_sample(z, u, p, channels)
        if bias is None:
            return y
        return y + (bias if channels == -1 else bias[:, None, None]).to(y.dtype)
    return _Combine.apply(z, u, p, bias, channels)


def is_pointwise(convolution: nn.Conv2d) -> bool:
    """Tell whether a convolution is one matrix product per position."""
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding in ((0, 0), "same", "valid")
        and convolution.groups == 1
    )


class _Combine(torch.autograd.Function):
    """`U (p * z) + bias` with z the only activation kept."""

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
        """Compute the gradients of z, coefficients and bias, each where it is asked for; U is frozen."""
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


def _combine_by_sample(z: Tensor, u: Tensor, p: Tensor, channels: int) -> Tensor:
    """`U (p_n * z_n)` for each sample n; the coefficients are folded into one small matrix for each."""
    matrices = (u * p[:, None, :]).to(z.dtype)
    if channels == -1:
        between = z.reshape(len(z), -1, z.shape[-1])
        return (between @ matrices.transpose(1, 2)).view(*z.shape[:-1], -1)
    if has_channels_last(z):
        return _combine_by_sample(z.permute(0, 2, 3, 1), u, p, -1).permute(0, 3, 1, 2)
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
