"""Which of many candidate masks are worth keeping: what the model expects of them, stability, the edges of crops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .cropped_mask import CroppedMask
from .grid_points import Box
from .resize import MaskResizer

# Segment Anything's own thresholds, chosen for the published SAMs.
PRED_IOU_THRESH, STABILITY_SCORE_THRESH = 0.88, 0.95
# Where none of a model's masks reaches them, those in the best part of its own masks stay.
_OWN_PART = 0.95

_STABILITY_OFFSET = 1.0  # how far the threshold on the logits is moved, both ways, to see whether the area changes
_EDGE = 20.0  # pixels; a mask that ends so near the edge of a crop goes on in the next one


class Thresholds(NamedTuple):
    """What a mask has to exceed to be kept; 0 keeps all."""

    pred_iou: float
    stability: float


def check_thresholds(pred_iou_thresh: float | None, stability_score_thresh: float | None) -> None:
    """Make sure that thresholds are numbers from 0.

    Raises:
        ValueError: One is not.
    """
    for name, value in (("pred_iou_thresh", pred_iou_thresh), ("stability_score_thresh", stability_score_thresh)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more (0 keeps all masks, 1 hardly any); got {value}.")


def judgements(logits: Tensor, expected: Tensor) -> Iterable[Thresholds]:
    """Return what thresholds compare, for candidates at the size that the mask decoder gives.

    Args:
        logits: (N, h, w).
        expected: The IoU that the model expects of each, (N,).
    """
    inner, outer = ((logits > level).sum((1, 2)) for level in (_STABILITY_OFFSET, -_STABILITY_OFFSET))
    return map(Thresholds, expected.tolist(), (inner / outer.clamp(1)).tolist())


def own_thresholds(
    judged: Iterable[Thresholds], limits: Thresholds, pred_iou: float | None, stability: float | None
) -> Thresholds | None:
    """Return thresholds that the best part of the candidates exceeds; None where what is given leaves none.

    Args:
        judged: The candidates, by `judgements`.
        limits: What none of them exceeds.
        pred_iou: Given by the caller, so it stays.
        stability: Likewise.
    """
    if pred_iou is not None and stability is not None:
        return None
    values = np.array(list(judged))
    # First the sure ones, then among them those about as stable as the half of them; what was judged at SAM's output
    # size differs a little from what is compared, at original size.
    if pred_iou is None:
        pred_iou = min(limits.pred_iou, float(np.quantile(values[:, 0], _OWN_PART)))
    sure = values[values[:, 0] > pred_iou]
    if not len(sure):
        return None
    if stability is None:
        stability = min(limits.stability, 0.9 * float(np.median(sure[:, 1])))
    return Thresholds(pred_iou, stability)


def stability_and_mask(resizer: MaskResizer, plane: Tensor) -> tuple[np.float32, tuple[int, int, np.ndarray]]:
    """Return how much of the area stays when the threshold rises, and the mask as `MaskResizer.mask` does."""
    areas: list[Tensor] = []
    parts: list[np.ndarray] = []
    corner = (0, 0)
    for x, y, piece in resizer.pieces(plane, -_STABILITY_OFFSET):
        areas.append(torch.stack([(piece > offset).sum() for offset in (_STABILITY_OFFSET, -_STABILITY_OFFSET)]))
        corner = corner if parts else (x, y)
        parts.append((piece > 0).cpu().numpy())
    mask = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=bool)
    inner, outer = torch.stack(areas).sum(0).tolist() if areas else (0, 0)
    return np.float32(inner) / np.float32(max(outer, 1)), (*corner, mask)


def is_cut_off(mask: CroppedMask, crop: Box, size: tuple[int, int]) -> bool:
    """Return whether a mask ends near an edge of its crop that is no edge of the image of `size` = (H, W)."""
    corners = corners_of([mask])[0]
    image = torch.tensor([0, 0, size[1], size[0]], dtype=torch.float32)
    near_crop = (corners - torch.tensor(crop, dtype=torch.float32)).abs() <= _EDGE
    near_image = (corners - image).abs() <= _EDGE
    return bool((near_crop & ~near_image).any())


def corners_of(masks: list[CroppedMask]) -> Tensor:
    """Return the first and the last pixel of each mask, float32 (N, 4), which Segment Anything compares as boxes."""
    boxes = [(x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)) for x0, y0, x1, y1 in (mask.box for mask in masks)]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
