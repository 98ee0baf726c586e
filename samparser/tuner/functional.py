"""How an adapted layer computes its output, and which of its forms costs least.

A layer describes the change of its weight as a list of `Term`: the sum over the terms of ``u diag(s) vh``. The
functions here turn a plain layer, an input and terms into an output, and know nothing of adapters.

- **rebuilt**: ``W + change`` is formed in every step and the plain layer computes with it. Always possible; with a
  change of zero it is the plain layer bit for bit.
- **factored**: ``U (p * (Vh x))``, possible where the base weight is ``U diag(p0) Vh`` and the only change is of p. No
  weight gradient is ever formed. Differs from the plain layer by rounding, about 3e-7 in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from .factored import along, combine, factored
from .factors import unfold, weight_change

Form = Literal["auto", "factored", "rebuilt"]


class Term(NamedTuple):
    """One part of a weight's change, ``u diag(s) vh``: u (out, k), s (k,), vh (k, fan_in)."""

    u: Tensor
    s: Tensor
    vh: Tensor


def change_of(terms: Sequence[Term], shape: torch.Size, *, fan_in_fan_out: bool) -> Tensor:
    """The change of the weight, in the weight's shape and in float32 or wider."""
    change = weight_change(*terms[0])
    for term in terms[1:]:
        change = change + weight_change(*term)
    return unfold(change, shape, fan_in_fan_out=fan_in_fan_out)


def rebuilt_weight(weight: Tensor, terms: Sequence[Term], *, fan_in_fan_out: bool) -> Tensor:
    """``weight + change``, added in float32 or wider and rounded once to the weight's dtype.

    Terms that sum to zero give back the weight bit for bit.
    """
    change = change_of(terms, weight.shape, fan_in_fan_out=fan_in_fan_out)
    return (weight.to(change.dtype) + change).to(weight.dtype)


def plain(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The output of a plain layer with another weight in the place of its own.

    x: (..., in) for linear layers, ([N], in, H, W) for convolutions.
    """
    if isinstance(base, nn.Conv2d):
        # Takes care of stride, padding, padding mode, dilation and groups.
        return base._conv_forward(x, weight, base.bias)
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, base.bias)
    # transformers' Conv1D keeps its weight as (in, out), and computes this very product.
    flat = torch.addmm(_tensor(base.bias), x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], weight.shape[1])


def cheaper_form(
    out: int, fan_in: int, rank: int, positions: int, *, input_grad: bool
) -> Literal["factored", "rebuilt"]:
    """The form that takes fewer products in a training step, forward and backward.

    Per position, with O = out, C = fan_in, r = rank:

    ========  ====================  =======================  ======================
    form      forward               backward, x frozen       backward, x with grad
    ========  ====================  =======================  ======================
    rebuilt   OC + OrC / positions  OC + OrC / positions     2 OC + OrC / positions
    factored  r (C + O)             r O                      r (C + O)
    ========  ====================  =======================  ======================

    Args:
        out, fan_in: Shape of the weight as a matrix.
        rank: Number of coefficients.
        positions: Outputs of the layer for all samples together: tokens, or pixels.
        input_grad: Whether the layer's input needs a gradient.

    Example:
        >>> cheaper_form(256, 768, 256, 64 * 64, input_grad=False)  # conv1 of SAM ViT-B's neck
        'factored'
        >>> cheaper_form(768, 768, 768, 64 * 64, input_grad=False)  # a square linear layer
        'rebuilt'
    """
    rebuilding = out * rank * fan_in / max(1, positions)
    if input_grad:
        by_factors, by_weight = 2 * rank * (fan_in + out), 3 * out * fan_in + 2 * rebuilding
    else:
        by_factors, by_weight = rank * (fan_in + 2 * out), 2 * out * fan_in + 2 * rebuilding
    return "factored" if by_factors < by_weight else "rebuilt"


def adapted(
    base: nn.Module,
    x: Tensor,
    terms: Sequence[Term],
    *,
    fan_in_fan_out: bool,
    whole: Term | None = None,
    form: Form = "auto",
) -> Tensor:
    """The output of a layer whose weight is changed by ``terms``, differentiable in x and in the terms.

    Args:
        base: The plain layer.
        x: Its input.
        terms: The change of its weight.
        fan_in_fan_out: The weight is stored as (in, out).
        whole: The weight itself as a term ``u diag(p0) vh``, if ``terms`` is a single one along the same bases (or
            their leading ones); None rules the factored form out.
        form: Which form to use; ``"auto"`` decides by `cheaper_form` where a gradient of the coefficients is wanted
            and the weight is not in half precision, and rebuilds otherwise.
    """
    if whole is not None and _use_factors(base, x, terms[0].s, whole, form):
        return factored(base, x, whole.u, coefficients(whole, terms), whole.vh)
    return plain(base, x, rebuilt_weight(_tensor(base.weight), terms, fan_in_fan_out=fan_in_fan_out))


def _use_factors(base: nn.Module, x: Tensor, s: Tensor, whole: Term, form: Form) -> bool:
    if form != "auto":
        return form == "factored"
    # Without a gradient nothing is gained. In half precision a weight formed in float32 and rounded once is best.
    if not (torch.is_grad_enabled() and s.requires_grad) or _tensor(base.weight).dtype.itemsize < 4:
        return False
    # Forward-mode differentiation and tracing know no custom functions.
    if not torch.compiler.is_compiling() and (torch.jit.is_tracing() or forward_ad._current_level >= 0):
        return False
    rank, fan_in = whole.vh.shape
    if isinstance(base, nn.Conv2d):
        positions = x.shape[:-3].numel() * x.shape[-2] * x.shape[-1] // (base.stride[0] * base.stride[1])
    else:
        positions = x.shape[:-1].numel()
    return cheaper_form(len(whole.u), fan_in, rank, positions, input_grad=x.requires_grad) == "factored"


def coefficients(whole: Term, terms: Sequence[Term]) -> Tensor:
    """All coefficients p of a weight, (r,), or (N, r) where the change has coefficients for each sample."""
    p = whole.s
    for term in terms:
        p = p + F.pad(term.s, (0, len(whole.s) - term.s.shape[-1]))
    return p


def from_projection(base: nn.Module, z: Tensor, whole: Term, changes: Sequence[Term]) -> Tensor:
    """The output of a layer from ``z = Vh x``, computed before: ([N], r, H, W) for convolutions, else (..., r)."""
    channels = -3 if isinstance(base, nn.Conv2d) else -1
    bias = None if base.bias is None else _tensor(base.bias)
    return combine(z, whole.u, coefficients(whole, changes), bias, channels=channels)


def adapted_by_sample(base: nn.Module, x: Tensor, term: Term, *, whole: Term | None = None) -> Tensor:
    """As `adapted`, with coefficients of their own for every sample of the batch: term.s is (N, k).

    One pass for the whole batch, not one rebuilt weight for each adapter: ``U (p_n * (Vh x_n))`` where ``whole`` is
    known and that is cheaper, else ``base(x) + U (s_n * (Vh x_n))``. Needs a convolution without groups.
    """
    if whole is not None:
        rank, (out, fan_in) = len(whole.s), (len(whole.u), whole.vh.shape[1])
        if rank * (fan_in + out) <= out * fan_in + len(term.vh) * (fan_in + out):
            return factored(base, x, whole.u, coefficients(whole, [term]), whole.vh)
    z = along(base, x, term.vh)
    channels = -3 if isinstance(base, nn.Conv2d) else -1
    return base(x) + combine(z, term.u, term.s, None, channels=channels)


def _tensor(value: Tensor | nn.Module) -> Tensor:
    assert isinstance(value, Tensor)
    return value
