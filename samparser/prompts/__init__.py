"""Prompts for SAM: boxes and points from masks, their frames, jitter and checks, and batches of them for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .checks import check_boxes, check_image, check_points
from .coordinates import inside_point, jitter_boxes, random_points
from .make_prompts import make_prompts
from .settings import PromptSettings

if TYPE_CHECKING:
    from .prompted_dataset import PromptedDataset, collate

__all__ = [
    "PromptSettings",
    "PromptedDataset",
    "check_boxes",
    "check_image",
    "check_points",
    "collate",
    "inside_point",
    "jitter_boxes",
    "make_prompts",
    "random_points",
]


def __getattr__(name: str) -> Any:
    # The data set needs the packages that read images; frames and checks of prompts need numpy only.
    if name not in ("PromptedDataset", "collate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    from . import prompted_dataset

    return getattr(prompted_dataset, name)
