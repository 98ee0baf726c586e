"""Methods that see more than the neck's coefficients: frozen rank-one terms alone, and the attention layers.

Directions of terms are chosen by one pass over training data. `samparser.training.train` makes it by itself; in a loop
of one's own `samparser.initialize_expansion` does (docs/method.md).
"""

from __future__ import annotations

from torch import nn

from samparser.sam import neck_targets

from .coefficients import terms_of, tune
from .registry import method
from .sam_parts import attention_layers


@method(
    "expansion",
    summary="frozen rank-one terms of the neck's convolutions, chosen by the gradient of the training images",
    trains_upstream=False,
)
def expansion(
    model: nn.Module,
    kind: str = "pairs",
    rank: int | None = None,
    dtype: str = "float16",
    decoder: bool = False,
    parametrization: str = "relative",
) -> nn.Module:
    """Train the numbers of an expansion and no coefficient: 64 pairs for each convolution are 128 numbers in SAM.

    `kind`: pairs of the weight's own bases, of which nothing is stored; the gradient's leading directions, stored as
    `dtype` with the adapter; or random ones, the control. `rank`: how many for each convolution, by default 64 pairs or
    4 directions. `decoder`: also train the mask decoder. `parametrization`: relative numbers have the unit of the mean
    coefficient.
    """
    terms = terms_of(kind, rank, expansion_dtype=dtype)
    return tune(model, neck_targets(model), decoder, trainable="expansion", parametrization=parametrization, **terms)


@method(
    "attention",
    summary="the coefficients of the attention layers' projections, with or without an expansion and the neck",
    trains_upstream=True,
)
def attention(
    model: nn.Module,
    blocks: int | None = None,
    neck: bool = False,
    expansion: str | None = None,
    expansion_rank: int | None = None,
    coefficients: bool = True,
    top: float | None = None,
    decoder: bool = False,
    parametrization: str = "relative",
) -> nn.Module:
    """Train coefficients of the layers that make queries, keys and values and of those that join the heads.

    `blocks`: in the last so many transformer layers alone. `neck`: in the neck's convolutions too. `expansion`: also
    `expansion_rank` terms in each layer, pairs, gradient or random; without `coefficients` these alone. `top`: the
    leading coefficients alone. `decoder`: also train the mask decoder.
    """
    sites = attention_layers(model, "attention")
    if blocks is not None and (type(blocks) is not int or not 1 <= blocks <= len(sites)):
        raise ValueError(
            f"blocks={blocks!r} must be a whole number from 1 to {len(sites)}, the attention layers of this model."
        )
    if not coefficients and expansion is None:
        raise ValueError("Without coefficients and without an expansion nothing trains: give one of them.")
    chosen = sites if blocks is None else sites[-blocks:]
    names = [part.name for site in chosen for part in (site.query, site.key, site.value, site.out)]
    targets = [*dict.fromkeys(names), *(neck_targets(model) if neck else [])]
    trainable = "coefficients" if coefficients else "expansion"
    terms = terms_of(expansion, expansion_rank)
    return tune(model, targets, decoder, trainable=trainable, parametrization=parametrization, top=top, **terms)
