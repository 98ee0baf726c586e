"""Default targets by model type, as each method of PEFT has them: the convolutions of every SAM's neck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

NECK = "vision_encoder.neck"


def _whole_neck(config: Mapping[str, Any]) -> list[str]:
    return [NECK]


def _levels_for_masks(config: Mapping[str, Any]) -> list[str]:
    """The levels of SAM 3's neck that its tracker decodes: one for each feature size."""
    factors, sizes = _levels(config)
    return _projections(min(factors, sizes))


def _levels_but_the_last(config: Mapping[str, Any]) -> list[str]:
    """The levels that SAM 3's detector and video models use: they leave the last one out."""
    factors, sizes = _levels(config)
    return _projections(min(factors - 1, sizes))


def _levels(config: Mapping[str, Any]) -> tuple[int, int]:
    vision = config["vision_config"]
    return len(vision["scale_factors"]), len(vision["backbone_feature_sizes"])


def _projections(levels: int) -> list[str]:
    # Without the transposed convolutions in front of them, which would train three times as much.
    return [f"{NECK}.fpn_layers.{level}.proj{part}" for level in range(levels) for part in (1, 2)]


_BY_MODEL_TYPE: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    **dict.fromkeys(("sam", "sam_hq", "sam2", "sam2_video", "edgetam", "edgetam_video"), _whole_neck),
    "sam3": _levels_but_the_last,
    "sam3_tracker": _levels_for_masks,
    "sam3_tracker_video": _levels_but_the_last,
}
MODEL_TYPES = tuple(_BY_MODEL_TYPE)
"""The values of `config.model_type` that have a default."""


def default_targets(model_type: str, config: Mapping[str, Any]) -> list[str] | None:
    """Return the default `target_modules` of a model, None where its type has none.

    SAM 3's neck makes more levels than its models use; only those are named whose coefficients can train.

    Args:
        model_type: `config.model_type`.
        config: The model's whole configuration, nested dictionaries.

    Example:
        >>> default_targets("sam", {})
        ['vision_encoder.neck']
        >>> vision = {"scale_factors": [4.0, 2.0], "backbone_feature_sizes": [[288, 288]]}
        >>> default_targets("sam3_tracker", {"vision_config": vision})
        ['vision_encoder.neck.fpn_layers.0.proj1', 'vision_encoder.neck.fpn_layers.0.proj2']
    """
    find = _BY_MODEL_TYPE.get(model_type)
    return None if find is None else find(config)
