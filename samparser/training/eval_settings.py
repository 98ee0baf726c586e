"""Evaluation settings: how a model is prompted and scored on a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from samparser._options import option
from samparser._words import count
from samparser.prompts import PromptSettings


@dataclass(frozen=True)
class EvalSettings:
    """How to score a model on a data set.

    Raises:
        ValueError: A value is out of its range, or belongs to the other kind of prompt.
    """

    eval_prompt: Literal["same", "box", "point"] = option(
        "What each instance is prompted with for its score: its box, or points on it. same: as in training; where both "
        "are trained, or nothing is, as in `samparser evaluate`, its box. Scores with different prompts cannot be "
        "compared.",
        "same",
    )
    eval_points: int | None = option(
        "Points per instance for scores with points. Not given: as many as in training, else 1.", None
    )
    eval_point_choice: Literal["same", "inside", "random"] = option(
        "inside: the first point is the one furthest from the mask's border, further ones are random; random: all are "
        "drawn from the mask; same: as in training, else inside.",
        "same",
    )
    eval_jitter: int = option("Move each side of the box by 0 to so many pixels; 0: tight boxes, as usual.", 0)
    eval_seed: int = option("Seed of the jitter and of random points.", 0)
    eval_batch: int = option("Prompts decoded together; bounds the memory, does not change the scores.", 32)
    eval_precision: Literal["fp32", "bf16", "fp16"] = option("Autocast type of the forward pass.", "fp32")

    def __post_init__(self) -> None:
        for name, least in (("eval_batch", 1), ("eval_points", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}.")
        if self.eval_jitter < 0:
            raise ValueError(f"eval_jitter is {self.eval_jitter}; it must not be negative.")
        for name, known in (
            ("eval_prompt", ("same", "box", "point")),
            ("eval_point_choice", ("same", "inside", "random")),
            ("eval_precision", ("fp32", "bf16", "fp16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {', '.join(known)}.")
        if self.eval_prompt == "point" and self.eval_jitter:
            raise ValueError(
                f"eval_jitter is {self.eval_jitter}, which moves the sides of boxes, but the scores are prompted with "
                "points. Leave eval_jitter out, or give eval_prompt box."
            )
        if self.eval_prompt == "box" and (self.eval_points is not None or self.eval_point_choice != "same"):
            raise ValueError(
                f"eval_points is {self.eval_points} and eval_point_choice {self.eval_point_choice!r}, but the scores "
                "are prompted with boxes. Give eval_prompt point, or leave both out."
            )

    def resolved(self, trained_with: PromptSettings | None = None) -> EvalSettings:
        """Return the same settings with the kind of prompt filled in.

        Args:
            trained_with: The prompts of the training run that is scored; None where there is none.

        Raises:
            ValueError: An option belongs to the other kind of prompt.
        """
        prompts = trained_with or PromptSettings()
        kind = self.eval_prompt
        if kind == "same":
            kind = "box" if "box" in prompts.prompt else "point"
        if kind == "box":
            return replace(self, eval_prompt=kind)
        choice = prompts.point_choice if self.eval_point_choice == "same" else self.eval_point_choice
        return replace(self, eval_prompt=kind, eval_points=self.eval_points or prompts.points, eval_point_choice=choice)

    def prompt_settings(self) -> PromptSettings:
        """Return the prompts of these settings in the terms of training, every instance of an image included."""
        settings = self.resolved()
        if settings.eval_prompt == "box":
            return PromptSettings(prompt="box", jitter_max=settings.eval_jitter, max_instances=0)
        assert settings.eval_points is not None
        assert settings.eval_point_choice != "same"
        points, choice = settings.eval_points, settings.eval_point_choice
        return PromptSettings(prompt="point", points=points, point_choice=choice, max_instances=0)

    def described(self) -> str:
        """Return what each instance is prompted with, as a sentence to print beside the scores.

        >>> print(EvalSettings(eval_prompt="point", eval_points=3).described())
        For each instance 3 points: the one furthest from the mask's border and 2 random ones (seed 0).
        """
        prompts, seed = self.prompt_settings(), self.eval_seed
        if prompts.prompt == "box":
            if not prompts.jitter_max:
                return "The tight box of each instance."
            return f"The box of each instance, each side moved outwards by 0 to {prompts.jitter_max} px (seed {seed})."
        points = f"For each instance {count(prompts.points, 'point')}"
        if prompts.point_choice == "random":
            return f"{points} drawn from its mask at random (seed {seed})."
        others = f" and {count(prompts.points - 1, 'random one')} (seed {seed})" if prompts.points > 1 else ""
        return f"{points}: the one furthest from the mask's border{others}."
