"""How far predicted masks are from the truth: the training loss, pixel counts, tables of scores, baselines."""

from __future__ import annotations

from .baselines import box_masks, ellipse_masks
from .counts import InstanceScore, score_instances
from .losses import LossTerms, segmentation_loss
from .table import ScoreTable

__all__ = [
    "InstanceScore",
    "LossTerms",
    "ScoreTable",
    "box_masks",
    "ellipse_masks",
    "score_instances",
    "segmentation_loss",
]
