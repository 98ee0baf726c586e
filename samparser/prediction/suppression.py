"""Non-maximum suppression: of boxes that overlap, the one with the best score."""

from __future__ import annotations

import torch
from torch import Tensor


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the indices of the boxes to keep, best first: each in turn removes later ones that overlap it too much.

    Args:
        boxes: (N, 4), (x0, y0, x1, y1).
        scores: (N,).
        threshold: Largest IoU that two kept boxes may have.
    """
    left = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        union = areas[best] + areas[left] - common
        left = left[~(common > threshold * union)]
    return torch.tensor(kept, dtype=torch.long)
