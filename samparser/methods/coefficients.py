"""SAM-PARSER and its ablations: the singular values of chosen weights are trained, their bases stay."""

from __future__ import annotations

from typing import Literal, get_args

from peft import get_peft_model
from torch import nn

from samparser.sam import neck_targets
from samparser.tuner import SVDCoefficientConfig

from .registry import method
from .sam_parts import mask_decoder, skip_convolutions, transformer_linear_names, transposed_convolutions

ChosenKind = Literal["pairs", "gradient", "random"]
"""The kinds of an expansion that a method can be given."""


@method(
    "samparser",
    summary="the coefficients of the neck's convolutions, and the mask decoder",
    trains_upstream=False,
    paper='"SAM-PARSER (Ours)" of Tables 3 to 5, "Conv. la." of Table 1, "Coefficients" of Table 2',
)
def samparser(
    model: nn.Module,
    parametrization: str = "relative",
    rank: int | None = None,
    save_basis: bool = False,
    transposed: bool = False,
    top: float | None = None,
    expansion: str | None = None,
    expansion_rank: int | None = None,
) -> nn.Module:
    """Train what the paper trains: in SAM 512 coefficients of the neck and the mask decoder's 4,058,340 parameters.

    `parametrization` (the paper's is absolute), `rank`, `top` and `save_basis` as in `SVDCoefficientConfig`: how the
    coefficients are trained, how many of the leading ones, and whether the bases are saved with them. `expansion`: also
    train `expansion_rank` terms in each layer: pairs, gradient or random. `transposed`: in SAM 3 also train the 2,560
    coefficients of the neck's transposed convolutions, which make its finer levels, beside the 1,536 of the others.
    """
    targets = neck_targets(model) + (transposed_convolutions(model) if transposed else [])
    fields = {"parametrization": parametrization, "rank": rank, "save_basis": save_basis, "top": top}
    return tune(model, targets, True, **fields, **terms_of(expansion, expansion_rank))


@method(
    "samparser-coefficients",
    summary="the coefficients of the neck's convolutions alone: an adapter of a few kilobytes",
    trains_upstream=False,
)
def samparser_coefficients(
    model: nn.Module,
    parametrization: str = "relative",
    rank: int | None = None,
    save_basis: bool = False,
    transposed: bool = False,
    skips: bool = False,
    top: float | None = None,
    expansion: str | None = None,
    expansion_rank: int | None = None,
) -> nn.Module:
    """Train the neck's coefficients, 512 in SAM, and leave the decoder frozen. Options as for `samparser`, and `skips`.

    `skips`: in SAM 2, EdgeTAM and SAM 3 also train the 96 coefficients of conv_s0 and conv_s1, which bring two
    high-resolution maps of the neck into the mask decoder and are counted to the decoder.
    """
    targets = neck_targets(model) + (transposed_convolutions(model) if transposed else [])
    targets += skip_convolutions(model) if skips else []
    fields = {"parametrization": parametrization, "rank": rank, "save_basis": save_basis, "top": top}
    return tune(model, targets, False, **fields, **terms_of(expansion, expansion_rank))


@method(
    "samparser-decoder-coefficients",
    summary="the coefficients of the neck and of all linear layers of the mask decoder",
    trains_upstream=False,
)
def samparser_decoder_coefficients(
    model: nn.Module,
    parametrization: str = "relative",
    rank: int | None = None,
    save_basis: bool = False,
    skips: bool = False,
) -> nn.Module:
    """Train coefficients in the mask decoder too, instead of all its weights.

    Options as for `samparser-coefficients`.
    """
    decoder = [
        f"mask_decoder.{name}" for name, module in mask_decoder(model).named_modules() if isinstance(module, nn.Linear)
    ]
    targets = neck_targets(model) + decoder + (skip_convolutions(model) if skips else [])
    return tune(model, targets, False, parametrization=parametrization, rank=rank, save_basis=save_basis)


@method(
    "bases",
    summary="the bases of the neck's convolutions at fixed coefficients, and the mask decoder",
    trains_upstream=False,
    paper='"Bases" of Table 2',
)
def bases(model: nn.Module, decoder: bool = True) -> nn.Module:
    """Train U and V of the neck and keep the coefficients: 917,504 parameters in SAM ViT-B.

    `decoder`: also train the mask decoder.
    """
    return tune(model, neck_targets(model), decoder, trainable="bases")


@method(
    "bases+coefficients",
    summary="bases and coefficients of the neck's convolutions, and the mask decoder",
    trains_upstream=False,
    paper='"Bases" and "Coefficients" of Table 2',
)
def bases_and_coefficients(model: nn.Module, parametrization: str = "relative", decoder: bool = True) -> nn.Module:
    """Train U, V and p of the neck: 918,016 parameters in SAM ViT-B, more than the 786,432 weights they make up.

    `decoder`: also train the mask decoder.
    """
    return tune(model, neck_targets(model), decoder, trainable="both", parametrization=parametrization)


@method(
    "transformer",
    summary="the coefficients of all linear layers of the image encoder's transformer, and the mask decoder",
    trains_upstream=True,
    paper='"Trans. la." of Table 1',
)
def transformer(model: nn.Module, parametrization: str = "relative", decoder: bool = True) -> nn.Module:
    """Train, in SAM ViT-B, 36,864 coefficients of 48 linear layers; splitting them takes about 40 s on one core.

    `decoder`: also train the mask decoder.
    """
    return tune(model, transformer_linear_names(model, "transformer"), decoder, parametrization=parametrization)


@method(
    "transformer+conv",
    summary="the coefficients of the transformer's linear layers and of the neck, and the mask decoder",
    trains_upstream=True,
    paper='"Trans. la." and "Conv. la." of Table 1',
)
def transformer_and_neck(model: nn.Module, parametrization: str = "relative", decoder: bool = True) -> nn.Module:
    """Train 37,376 coefficients in SAM ViT-B. `decoder`: also train the mask decoder."""
    targets = transformer_linear_names(model, "transformer+conv") + neck_targets(model)
    return tune(model, targets, decoder, parametrization=parametrization)


def terms_of(expansion: str | None, rank: int | None, **fields: object) -> dict[str, object]:
    """Return the configuration of an expansion; nothing for none.

    Raises:
        ValueError: There is no such kind of expansion, or a rank is given and no expansion.
    """
    kinds = get_args(ChosenKind)
    if expansion is not None and expansion not in kinds:
        raise ValueError(f"There is no expansion {expansion!r}: give {', '.join(kinds[:-1])} or {kinds[-1]}.")
    if expansion is None and rank is not None:
        raise ValueError(f"There is no expansion to have {rank} terms: give pairs, gradient or random as well.")
    return {} if expansion is None else {"expansion": expansion, "expansion_rank": rank, **fields}


def tune(model: nn.Module, targets: list[str], decoder: bool, **fields: object) -> nn.Module:
    """Give a model an adapter on the layers of these names, and its mask decoder to train in full if wanted."""
    if decoder:
        mask_decoder(model)
    saved = ["mask_decoder"] if decoder else None
    config = SVDCoefficientConfig(target_modules=targets, modules_to_save=saved, **fields)  # type: ignore[arg-type]
    return get_peft_model(model, config)
