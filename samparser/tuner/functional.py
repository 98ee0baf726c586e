"""Forms of the adapted layer: `W' x` with the weight rebuilt, or as three factors, whichever costs least.

The functions here turn a plain layer, an input and the change of its weight into an output; they know nothing of
adapters. The change is a list of `Factors`, the sum of their products.

- **rebuilt**: `W + change` is formed in every step and the plain layer computes with it. Always possible; with a
  change of zero it is the plain layer bit for bit.
- **factored**: `U (p * (Vh x)) + bias`, possible where the base weight is `U diag(p0) Vh`; see
  `samparser.tuner.factored`.

Inputs are (..., in) for linear layers and ([N], in, H, W) for convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from . import transposed
from .config import Form
from .factored import add_along, by_factors, convolved
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
    output_size: Sequence[int] | None = None,
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
        output_size: What a transposed convolution takes beside x; see `torch.nn.ConvTranspose2d`.
    """
    if inside is not None and _use_factors(base, x, terms, inside, beside, form):
        return by_factors(base, x, inside, beside)
    weight = rebuilt_weight(_tensor(base.weight), terms, fan_in_fan_out=fan_in_fan_out)
    return with_weight(base, x, weight, output_size)


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
    out, fan_in, cost = len(inside.u), inside.vh.shape[1], 1.0
    if isinstance(base, nn.ConvTranspose2d):
        # The matrix the other way round: from rows, which are inputs, to columns.
        out, fan_in, cost = fan_in, out, transposed.COST_OF_A_PRODUCT
        positions = x.shape[:-3].numel() * x.shape[-2:].numel()
    elif isinstance(base, nn.Conv2d):
        positions = x.shape[:-3].numel() * x.shape[-2] * x.shape[-1] // (base.stride[0] * base.stride[1])
    else:
        positions = x.shape[:-1].numel()
    cheaper = cheaper_form(
        out,
        fan_in,
        len(inside.vh) + _directions(beside),
        positions,
        input_grad=x.requires_grad,
        changed=_directions(terms),
        cost=cost,
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
    known and that is cheaper, else `base(x) + U (change_n * (Vh x_n))`. Needs a layer that `has_factors`.
    """
    if inside is not None:
        out, fan_in = len(inside.u), inside.vh.shape[1]
        products = (len(inside.vh) + _directions(beside)) * (fan_in + out)
        if products <= out * fan_in + _directions(terms) * (fan_in + out):
            return by_factors(base, x, inside, beside)
    return add_along(base, x, base(x), terms)


def cheaper_form(
    out: int,
    fan_in: int,
    rank: int,
    positions: int,
    *,
    input_grad: bool,
    changed: int | None = None,
    cost: float = 1.0,
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
        cost: What a product OC of the plain layer costs, over one of a matrix.

    Example:
        >>> cheaper_form(256, 768, 256, 64 * 64, input_grad=False)  # conv1 of SAM ViT-B's neck
        'factored'
        >>> cheaper_form(768, 768, 768, 64 * 64, input_grad=False)  # a square linear layer
        'rebuilt'
    """
    rebuilding = out * (rank if changed is None else changed) * fan_in / max(1, positions)
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
        return convolved(base, x, weight, base.bias)
    if isinstance(base, nn.Linear):
        return F.linear(x, weight, base.bias)
    # transformers' Conv1D keeps its weight as (in, out), and computes this very product.
    flat = torch.addmm(_tensor(base.bias), x.reshape(-1, x.shape[-1]), weight)
    return flat.view(*x.shape[:-1], weight.shape[1])


def _tensor(value: Tensor | nn.Module) -> Tensor:
    assert isinstance(value, Tensor)
    return value
