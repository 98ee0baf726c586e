"""Methods that add nothing: they choose which of the model's own parameters train."""

from __future__ import annotations

from torch import nn

from samparser.sam.families import family_of

from .registry import method
from .sam_parts import mask_decoder, neck


@method(
    "zero-shot",
    summary="nothing is trained: the model as it was released",
    trains_upstream=False,
    paper='"Baseline" of Tables 3 and 5',
)
def zero_shot(model: nn.Module) -> nn.Module:
    """Leave the base model frozen."""
    return model


@method(
    "decoder",
    summary="the whole mask decoder",
    trains_upstream=False,
    paper='"Baseline†" of Tables 1 to 5',
)
def decoder(model: nn.Module) -> nn.Module:
    """Train the mask decoder, 4,058,340 parameters in every size of SAM."""
    mask_decoder(model).requires_grad_(True)
    return model


@method(
    "full-neck",
    summary="all weights of the image encoder's neck, and the mask decoder",
    trains_upstream=False,
)
def full_neck(model: nn.Module, decoder: bool = True) -> nn.Module:
    """Train the neck's convolutions and norms as they are: what reconstruction by coefficients is to be held against.

    `decoder`: also train the mask decoder.
    """
    neck(model).requires_grad_(True)
    _freeze_idle(model)
    mask_decoder(model).requires_grad_(decoder)
    return model


@method("full", summary="every weight of the model", trains_upstream=True)
def full(model: nn.Module) -> nn.Module:
    """Train image encoder, prompt encoder and mask decoder.

    The random frequencies of the positional encoding stay as they are: in SAM they are constants, which transformers
    stores as a parameter. So do parts that no mask depends on. The running statistics of EdgeTAM's batch norms follow
    the training and are saved with it.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("positional_embedding"))
    _freeze_idle(model)
    return model


def _freeze_idle(model: nn.Module) -> None:
    idle = family_of(model, "A method that trains whole parts").idle(model)
    for name, parameter in model.named_parameters():
        if any(name == part or name.startswith(f"{part}.") for part in idle):
            parameter.requires_grad_(False)
