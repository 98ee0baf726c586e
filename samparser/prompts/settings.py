"""Prompt settings: what SAM is told about each object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samparser._options import option


@dataclass(frozen=True)
class PromptSettings:
    """What tells SAM which object is meant.

    Raises:
        ValueError: A value is out of its range; the message names the field, the value and the range.
    """

    prompt: Literal["box", "point", "box,point"] = option(
        "Prompt each instance with a box or points; box,point draws one of the two for each step, so that the model "
        "works with both.",
        "box",
    )
    jitter_min: float = option("Each box side moves by at least this many pixels.", 0.0)
    jitter_max: float = option(
        "Each box side moves by at most this many pixels, drawn anew in each epoch. 0 turns it off.", 20.0
    )
    jitter_frame: Literal["original", "input"] = option(
        "Which pixels jitter is counted in: those of the original image, or those of the image resized to SAM's input "
        "size. On a 256 px image 20 original pixels are 80 input pixels.",
        "original",
    )
    jitter_direction: Literal["outward", "both"] = option(
        "outward: boxes only grow, as in MedSAM, which the paper follows; both: sides move either way.", "outward"
    )
    jitter_max_fraction: float | None = option(
        "No side moves further than this part of the box's own width or height: 0.1 or 0.2 keeps the boxes of small "
        "objects meaningful. Default: no such bound, as in the paper.",
        None,
    )
    points: int = option("Points per instance, where points are prompts.", 1)
    point_choice: Literal["inside", "random"] = option(
        "inside: the first point is the one furthest from the mask's border, further ones are random; random: all are "
        "drawn from the mask.",
        "inside",
    )
    max_instances: int | None = option(
        "Use at most this many instances of an image per step, drawn anew in each epoch; bounds memory. 0: all of "
        "them.",
        64,
    )

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_min <= self.jitter_max:
            raise ValueError(
                f"The jitter must be 0 <= jitter_min <= jitter_max pixels, got {self.jitter_min} and {self.jitter_max}."
            )
        if self.jitter_max_fraction is not None and self.jitter_max_fraction < 0:
            raise ValueError(f"jitter_max_fraction must not be negative, got {self.jitter_max_fraction}.")
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}.")
        if self.max_instances is not None and self.max_instances < 0:
            raise ValueError(f"max_instances must be 0 (all) or more, got {self.max_instances}.")
        for name, allowed in (
            ("prompt", ("box", "point", "box,point")),
            ("jitter_frame", ("original", "input")),
            ("jitter_direction", ("outward", "both")),
            ("point_choice", ("inside", "random")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}.")
