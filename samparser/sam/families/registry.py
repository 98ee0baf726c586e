"""Which families there are, and which one a model is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samparser.sam.wrapped import plain_model

from .base import Family, config_of
from .edgetam import EdgeTam
from .sam import Sam
from .sam2 import Sam2
from .sam3 import Sam3Tracker, live_levels
from .sam_hq import SamHQ


@dataclass(frozen=True)
class TunerOnly:
    """A model of the SAM line that the tuner works on and nothing else here does.

    Attributes:
        model_type: `config.model_type` of its checkpoints.
        model_class: Name of the class in transformers.
        neck: As of a `Family`.
        coefficients: As of a `Family`.
        reason: Why it is no family, as a sentence.
        drops_last_level: Whether the model computes the last of SAM 3's levels for nothing.
    """

    model_type: str
    model_class: str
    neck: str
    coefficients: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    drops_last_level: bool = False

    def neck_of(self, model: Any) -> str:
        """Return `neck`, narrowed to the convolutions that have a part in a model's masks."""
        if not self.drops_last_level:
            return self.neck
        return live_levels(len(config_of(model).vision_config.scale_factors) - 1)


FAMILIES: dict[str, Family] = {
    model_type: family
    for family in (Sam(), SamHQ(), Sam2(), EdgeTam(), Sam3Tracker())
    for model_type in family.model_types
}
"""Every family by each model type that it loads. Another one is added with `register_family`."""

_VIDEO = "It follows objects through a video by a memory, which no loss on single images trains."
_EXEMPLARS = (
    "Its boxes are exemplars of a concept, answered by a list of detections, not prompts that are answered by one mask "
    "each; Sam3TrackerModel, which loads from the same checkpoints, takes prompts."
)

TUNER_ONLY: dict[str, TunerOnly] = {
    other.model_type: other
    for other in (
        TunerOnly("sam2_video", "Sam2VideoModel", Sam2.neck, Sam2.coefficients, _VIDEO),
        TunerOnly("edgetam_video", "EdgeTamVideoModel", Sam2.neck, {"default": 800}, _VIDEO),
        TunerOnly("sam3", "Sam3Model", Sam3Tracker.neck, Sam3Tracker.coefficients, _EXEMPLARS, True),
        TunerOnly(
            "sam3_tracker_video", "Sam3TrackerVideoModel", Sam3Tracker.neck, Sam3Tracker.coefficients, _VIDEO, True
        ),
    )
}
"""Models that are no family, by model type; a model type may be here and in `FAMILIES`, for another class."""


def register_family(family: Family) -> None:
    """Make a family known by each of its model types; one that was there under a model type gives way."""
    FAMILIES.update(dict.fromkeys(family.model_types, family))


def known_families() -> str:
    """Return the classes of the models that there are families of, for messages."""
    return ", ".join(dict.fromkeys(family.model_class for family in FAMILIES.values()))


def tuner_only(model_type: str, class_name: str | None = None) -> TunerOnly | None:
    """Return what the tuner alone works on, by model type and, where a model is at hand, its class."""
    other = TUNER_ONLY.get(model_type)
    return other if other is not None and class_name in (None, other.model_class) else None


def no_family(other: TunerOnly) -> str:
    """Return what to do with a model that the tuner alone works on, as sentences."""
    return " ".join(
        filter(
            None,
            (
                other.reason,
                "The tuner itself works on it: load it with transformers "
                f"({other.model_class}) and train it in your own loop.",
            ),
        )
    )


def family_of_config(config: Any, purpose: str = "This") -> Family:
    """Return the family that a config of transformers, as `AutoConfig` reads it beside a checkpoint, is loaded as.

    Args:
        config: The config.
        purpose: What needs it, as the start of the message: "Counting".

    Raises:
        TypeError: It is of no family.
    """
    model_type = getattr(config, "model_type", None)
    family = FAMILIES.get(str(model_type))
    if family is None:
        other = tuner_only(str(model_type))
        advice = "" if other is None else f" {no_family(other)}"
        raise TypeError(
            f"{purpose} needs the config of a {known_families().replace(', ', ' or ')}; got a {type(config).__name__} "
            f"of type {model_type!r}.{advice}"
        )
    return family


def family_of(model: Any, purpose: str = "This") -> Family:
    """Return the family of a model.

    Args:
        model: A model of a family, or a PeftModel around one.
        purpose: What needs it, as the start of the message: "Prediction".

    Raises:
        TypeError: The model is of no family.
    """
    plain = plain_model(model)
    model_type = str(getattr(getattr(plain, "config", None), "model_type", None))
    class_name = type(plain).__name__
    other = tuner_only(model_type, class_name)
    family = FAMILIES.get(model_type)
    if family is None or other is not None:
        advice = "" if other is None else f" {no_family(other)}"
        raise TypeError(
            f"{purpose} needs a {known_families().replace(', ', ' or ')}, or a PeftModel around one; got a "
            f"{class_name}.{advice}"
        )
    return family
