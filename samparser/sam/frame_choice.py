"""How a model takes images where its folder does not say it: the choice somebody made, and the processor for it."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from .families.registry import family_of
from .frame import Padded, Squashed, frame_of
from .square_processor import SquareImageProcessor, SquareProcessor
from .wrapped import image_processor, plain_model

ChosenFrame = Literal["padded", "squashed", "medsam"]

CHOICES = (
    "padded (the longer side resized, zeros right and below, as SAM does), squashed (stretched to a square, with the "
    "colours scaled as SAM does) or medsam (stretched to a square, values from the darkest to the brightest brought to "
    "0 .. 1)"
)

_CHOSEN = "_samparser_frame"
# What of a padding processor says how colours are scaled, and how it resizes.
_COLOURS = ("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "do_convert_rgb", "resample")


def chosen_frame(model: nn.Module) -> ChosenFrame | None:
    """Return the frame that was chosen for a model when it was loaded; None where its own processor decides."""
    return getattr(plain_model(model), _CHOSEN, None)


def choose_frame(model: nn.Module, frame: ChosenFrame, saved: Any = None) -> Any:
    """Return the processor for a chosen frame, and keep the choice on the model, so that it is saved with a tuning.

    Args:
        model: The model.
        frame: One of `CHOICES`.
        saved: The processor beside the model, where there is one: in its own frame it stays as it is, and another
            square takes over how it scales colours.

    Raises:
        ValueError: There is no such choice, or the model cannot take images so.
    """
    family = family_of(model)
    wanted = family.frame(model)
    if frame not in ("padded", "squashed", "medsam"):
        raise ValueError(f"There is no frame {frame!r}; choose {CHOICES}.")
    if frame == "padded" and not isinstance(wanted, Padded):
        raise ValueError(
            f"frame is 'padded', but a {family.model_class} takes images squashed to a square. Leave it out, or choose "
            "squashed."
        )
    setattr(plain_model(model), _CHOSEN, frame)
    there = None if saved is None else frame_of(saved)
    if frame == "medsam":
        scaled = SquareImageProcessor(wanted.size, do_min_max=True, do_normalize=False, resample=3)
        return SquareProcessor(scaled)
    if there is not None and isinstance(there, Padded if frame == "padded" else Squashed):
        return saved
    if frame == "padded" and there is not None:
        raise ValueError(
            "frame is 'padded', but the processor saved with the model squashes images to a square. Leave it out."
        )
    usual = family.processor(None, model) if saved is None else saved
    if frame == "padded" or isinstance(frame_of(usual), Squashed):
        return usual
    settings = image_processor(usual).to_dict()
    colours = {name: settings[name] for name in _COLOURS if settings.get(name) is not None}
    return SquareProcessor(SquareImageProcessor(wanted.size, **colours | {"resample": int(colours["resample"])}))
