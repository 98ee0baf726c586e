"""SAM-PARSER and its ablations: the singular values of chosen weights are trained, their bases stay."""

from __future__ import annotations

from peft import get_peft_model
from torch import nn

from samparser.sam import neck_targets
from samparser.tuner import SVDCoefficientConfig

from .registry import method
from .sam_parts import mask_decoder, skip_convolutions, transformer_linear_names, transposed_convolutions


@method(
    "samparser",
    summary="the coefficients of the neck's convolutions, and the mask decoder",
    trains_upstream=False,
    paper='"SAM-PARSER (Ours)" of Tables 3 to 5, "Conv. la." of Table 1, "Coefficients" of Table 2',
)
def samparser(
    model: nn.Module,
    parametrization: str = "absolute",
    rank: int | None = None,
    save_basis: bool = False,
    transposed: bool = False,
) -> nn.Module:
    """Train what the paper trains: in SAM 512 coefficients of the neck and the mask decoder's 4,058,340 parameters.

    `parametrization`, `rank` and `save_basis` as in `SVDCoefficientConfig`: how the coefficients are trained,
    how many of the leading ones, and whether the bases are saved with them. `transposed`: in SAM 3 also train the 2,560
    coefficients of the neck's transposed convolutions, which make its finer levels, beside the 1,536 of the others.
    """
    targets = neck_targets(model) + (transposed_convolutions(model) if transposed else [])
    return _tune(model, targets, True, parametrization=parametrization, rank=rank, save_basis=save_basis)


@method(
    "samparser-coefficients",
    summary="the coefficients of the neck's convolutions alone: an adapter of a few kilobytes",
    trains_upstream=False,
)
def samparser_coefficients(
    model: nn.Module,
    parametrization: str = "absolute",
    rank: int | None = None,
    save_basis: bool = False,
    transposed: bool = False,
    skips: bool = False,
) -> nn.Module:
    """Train the neck's coefficients, 512 in SAM, and leave the decoder frozen. Options as for `samparser`, and `skips`.

    `skips`: in SAM 2, EdgeTAM and SAM 3 also train the 96 coefficients of conv_s0 and conv_s1, which bring two
    high-resolution maps of the neck into the mask decoder and are counted to the decoder.
    """
    targets = neck_targets(model) + (transposed_convolutions(model) if transposed else [])
    targets += skip_convolutions(model) if skips else []
    return _tune(model, targets, False, parametrization=parametrization, rank=rank, save_basis=save_basis)


@method(
    "samparser-decoder-coefficients",
    summary="the coefficients of the neck and of all linear layers of the mask decoder",
    trains_upstream=False,
)
def samparser_decoder_coefficients(
    model: nn.Module,
    parametrization: str = "absolute",
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
    return _tune(model, targets, False, parametrization=parametrization, rank=rank, save_basis=save_basis)


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
    return _tune(model, neck_targets(model), decoder, trainable="bases")


@method(
    "bases+coefficients",
    summary="bases and coefficients of the neck's convolutions, and the mask decoder",
    trains_upstream=False,
    paper='"Bases" and "Coefficients" of Table 2',
)
def bases_and_coefficients(model: nn.Module, parametrization: str = "absolute", decoder: bool = True) -> nn.Module:
    """Train U, V and p of the neck: 918,016 parameters in SAM ViT-B, more than the 786,432 weights they make up.

    `decoder`: also train the mask decoder.
    """
    return _tune(model, neck_targets(model), decoder, trainable="both", parametrization=parametrization)


@method(
    "transformer",
    summary="the coefficients of all linear layers of the image encoder's transformer, and the mask decoder",
    trains_upstream=True,
    paper='"Trans. la." of Table 1',
)
def transformer(model: nn.Module, parametrization: str = "absolute", decoder: bool = True) -> nn.Module:
    """Train, in SAM ViT-B, 36,864 coefficients of 48 linear layers; splitting them takes about 40 s on one core.

    `decoder`: also train the mask decoder.
    """
    return _tune(model, transformer_linear_names(model, "transformer"), decoder, parametrization=parametrization)


@method(
    "transformer+conv",
    summary="the coefficients of the transformer's linear layers and of the neck, and the mask decoder",
    trains_upstream=True,
    paper='"Trans. la." and "Conv. la." of Table 1',
)
def transformer_and_neck(model: nn.Module, parametrization: str = "absolute", decoder: bool = True) -> nn.Module:
    """Train 37,376 coefficients in SAM ViT-B. `decoder`: also train the mask decoder."""
    targets = transformer_linear_names(model, "transformer+conv") + neck_targets(model)
    return _tune(model, targets, decoder, parametrization=parametrization)


def _tune(model: nn.Module, targets: list[str], decoder: bool, **fields: object) -> nn.Module:
    if decoder:
        mask_decoder(model)
    saved = ["mask_decoder"] if decoder else None
    config = SVDCoefficientConfig(target_modules=targets, modules_to_save=saved, **fields)  # type: ignore[arg-type]
    return get_peft_model(model, config)
