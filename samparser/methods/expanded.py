"""Methods that see more than coefficients: frozen rank-one terms beside them, in the neck and in the attention layers.

The directions of the terms are chosen by one pass over training data, which `samparser.training.train` makes by itself;
in a loop of one's own `samparser.initialize_expansion` makes it (docs/method.md).
"""

from __future__ import annotations

from torch import nn

from samparser.sam import neck_targets

from .coefficients import tune
from .registry import method
from .sam_parts import attention_layers


@method(
    "pairs",
    summary="pairs of the bases of the neck's convolutions, chosen by the gradient of the training images",
    trains_upstream=False,
)
def pairs(
    model: nn.Module,
    rank: int = 64,
    coefficients: bool = True,
    decoder: bool = False,
    parametrization: str = "relative",
    top: float | None = None,
) -> nn.Module:
    """Train `rank` numbers for each convolution of the neck, each along a pair of its own bases; nothing is stored.

    `coefficients`: also train the coefficients, `top` of them, by `parametrization` as in `SVDCoefficientConfig`.
    `decoder`: also train the mask decoder.
    """
    return _neck(model, decoder, coefficients, top, parametrization, expansion="pairs", expansion_rank=rank)


@method(
    "gradient",
    summary="the leading directions of the gradient of the training images in the neck's convolutions",
    trains_upstream=False,
)
def gradient(
    model: nn.Module,
    rank: int = 4,
    coefficients: bool = True,
    decoder: bool = False,
    parametrization: str = "relative",
    top: float | None = None,
    dtype: str = "float16",
) -> nn.Module:
    """Train `rank` numbers for each convolution of the neck, along frozen directions that the adapter stores.

    Options as for `pairs`; `dtype`: how directions are stored, float16 or float32.
    """
    fields = {"expansion": "gradient", "expansion_rank": rank, "expansion_dtype": dtype}
    return _neck(model, decoder, coefficients, top, parametrization, **fields)


@method(
    "random",
    summary="random frozen directions in the neck's convolutions: the control of `gradient`",
    trains_upstream=False,
)
def random(
    model: nn.Module,
    rank: int = 4,
    coefficients: bool = False,
    decoder: bool = False,
    parametrization: str = "relative",
    dtype: str = "float16",
) -> nn.Module:
    """Train `rank` numbers for each convolution of the neck, along random directions. Options as for `gradient`."""
    fields = {"expansion": "random", "expansion_rank": rank, "expansion_dtype": dtype}
    return _neck(model, decoder, coefficients, None, parametrization, **fields)


@method(
    "attention",
    summary="the coefficients of the attention layers' projections, with or without pairs and neck",
    trains_upstream=True,
)
def attention(
    model: nn.Module,
    blocks: int | None = None,
    expansion: str | None = None,
    rank: int | None = None,
    coefficients: bool = True,
    neck: bool = False,
    decoder: bool = False,
    parametrization: str = "relative",
    top: float | None = None,
) -> nn.Module:
    """Train coefficients of all layers that make queries, keys and values and that join the heads.

    `blocks`: in the last so many transformer layers only. `expansion`: also terms, pairs, gradient or random, `rank` of
    them in a layer. `neck`: in the neck's convolutions too. Other options as for `pairs`.
    """
    sites = attention_layers(model, "attention")
    if blocks is not None and not 1 <= blocks <= len(sites):
        raise ValueError(f"blocks={blocks} must lie between 1 and the {len(sites)} attention layers of this model.")
    rows = [part for site in sites[-blocks if blocks else 0 :] for part in (site.query, site.key, site.value, site.out)]
    targets = [*dict.fromkeys(part.name for part in rows), *(neck_targets(model) if neck else [])]
    terms = {} if expansion is None else {"expansion": expansion, "expansion_rank": rank}
    return _expanded(model, targets, decoder, coefficients, top, parametrization, **terms)


def _neck(model: nn.Module, decoder: bool, coefficients: bool, top: float | None, *rest: str, **terms: object) -> nn.Module:
    return _expanded(model, neck_targets(model), decoder, coefficients, top, *rest, **terms)


def _expanded(
    model: nn.Module,
    targets: list[str],
    decoder: bool,
    coefficients: bool,
    top: float | None,
    parametrization: str,
    **terms: object,
) -> nn.Module:
    fields = {"trainable": "coefficients" if coefficients else "expansion", "top": top, **terms}
    return tune(model, targets, decoder, parametrization=parametrization, **fields)
