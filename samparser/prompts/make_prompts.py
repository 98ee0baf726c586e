"""From instances to prompts: the one road by which training and scoring make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .coordinates import inside_point, jitter_boxes, random_points
from .settings import PromptSettings

if TYPE_CHECKING:
    from samparser.data.sample import Instance
    from samparser.sam.frame import Frame


def make_prompts(
    instances: Sequence[Instance],
    size: tuple[int, int],
    settings: PromptSettings,
    rng: np.random.Generator,
    *,
    frame: Frame | None = None,
) -> dict[str, np.ndarray]:
    """Return prompts of each instance: its box, moved at random where the settings say so, points on it, or both kinds.

    Args:
        instances: Of one image, in the original frame.
        size: (height, width) of the image.
        settings: Kind of prompt, jitter and points; `max_instances` is the caller's affair.
        rng: Source of the randomness, drawn from in the order of the instances.
        frame: The model's input frame, to get the prompts in it.

    Returns:
        `{"boxes": float32 (N, 4)}` or `{"points": float32 (N, P, 2)}`, or both where the settings mix them, to choose
        from; in the original frame, or in the input frame where `frame` is given.

    Raises:
        ValueError: Jitter is counted in the input frame, and `frame` is not given.
    """
    prompts = {}
    if "box" in settings.prompt:
        prompts["boxes"] = _boxes(instances, size, settings, rng, frame)
    if "point" in settings.prompt:
        points = np.zeros((len(instances), settings.points, 2), dtype=np.float32)
        for place, instance in zip(points, instances, strict=True):
            place[:] = instance.box[:2] + _points_on(instance.mask, settings, rng)
        prompts["points"] = points if frame is None else frame.to_input(points, size)
    return prompts


def _boxes(
    instances: Sequence[Instance],
    size: tuple[int, int],
    settings: PromptSettings,
    rng: np.random.Generator,
    frame: Frame | None,
) -> np.ndarray:
    boxes = np.array([instance.box for instance in instances], dtype=np.float32).reshape(-1, 4)
    # Jitter comes before or after the change of frame, whichever makes its pixels those that were asked for.
    if settings.jitter_frame == "input":
        if frame is None:
            raise ValueError("jitter_frame is input, so the model's input frame must be given.")
        return _jittered(frame.to_input(boxes, size), frame.content(size), settings, rng)
    boxes = _jittered(boxes, size, settings, rng)
    return boxes if frame is None else frame.to_input(boxes, size)


def _jittered(
    boxes: np.ndarray, size: tuple[int, int], settings: PromptSettings, rng: np.random.Generator
) -> np.ndarray:
    if settings.jitter_max == 0:
        return boxes
    return jitter_boxes(
        boxes,
        size,
        settings.jitter_min,
        settings.jitter_max,
        rng,
        direction=settings.jitter_direction,
        max_fraction=settings.jitter_max_fraction,
    )


def _points_on(mask: np.ndarray, settings: PromptSettings, rng: np.random.Generator) -> np.ndarray:
    if settings.point_choice == "random":
        return random_points(mask, settings.points, rng)
    return np.concatenate([inside_point(mask)[None], random_points(mask, settings.points - 1, rng)])
