"""Mask logits from SAM's output size to the original image, a window at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samparser.sam.frame import Frame, frame_of

_PIECE = 1 << 22  # pixels of float32 logits that are there at a time: 16 MiB, and a few temporary copies


class MaskResizer:
    """The way of transformers' `post_process_masks`, which is `Frame.to_original`, in pieces.

    Every step is bilinear, in float32. The last one is computed here rather than by torch, because torch has no way
    to compute a part of it: the logits of one mask of 13,000 x 13,000 pixels are 676 MB.

    Args:
        processor: The model's processor, its image processor, or the frame.
        size: (H, W) of the original image.
    """

    def __init__(self, processor: Any, size: tuple[int, int]) -> None:
        self.size = size
        self._frame: Frame = frame_of(processor)

    def to_input(self, logits: Tensor) -> Tensor:
        """Return logits (N, h, w) of the mask decoder without padding, before the last step: float32 (N, h', w')."""
        return self._frame.unpadded(logits, self.size)

    def pieces(self, plane: Tensor, above: float | None = None) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the logits of one mask at original size in pieces (x, y, float32 (rows, columns)) from top to bottom.

        Args:
            plane: float32 (h', w') as `to_input` gives it.
            above: Leave out what is certainly not above this value: all outside of a box. None: yield everything.
        """
        rows, columns = (0, self.size[0]), (0, self.size[1])
        if above is not None:
            # A resized value lies between its neighbours, up to rounding.
            near = plane > above - 1e-5 * abs(above)
            # Both at once: an accelerator is waited for once for each mask.
            near_rows, near_columns = torch.cat([near.any(dim=1), near.any(dim=0)]).cpu().split(list(plane.shape))
            rows = _reached(near_rows, plane.shape[0], self.size[0])
            columns = _reached(near_columns, plane.shape[1], self.size[1])
        low, high, part = _neighbours(*columns, plane.shape[1], self.size[1], plane.device)
        wide = plane[:, low] * (1 - part) + plane[:, high] * part
        step = max(1, _PIECE // max(1, columns[1] - columns[0]))
        for start in range(rows[0], rows[1], step):
            low, high, part = _neighbours(start, min(start + step, rows[1]), plane.shape[0], self.size[0], plane.device)
            yield columns[0], start, wide[low] * (1 - part[:, None]) + wide[high] * part[:, None]

    def mask(self, plane: Tensor, threshold: float) -> tuple[int, int, np.ndarray]:
        """Return (x, y, bool (rows, columns)): a part of the mask above a threshold that holds all of it."""
        parts = [(x, y, (piece > threshold).cpu().numpy()) for x, y, piece in self.pieces(plane, threshold)]
        if not parts:
            return 0, 0, np.zeros((0, 0), dtype=bool)
        return parts[0][0], parts[0][1], np.concatenate([part for _, _, part in parts])


def to_original_size(logits: Tensor, processor: Any, original_size: tuple[int, int]) -> Tensor:
    """Resize mask logits of one image from the decoder's output size to original size, as transformers does.

    Args:
        logits: (N, h, w) on any device, of any floating-point type, as `pred_masks[0, :, 0]` gives them.
        processor: The model's processor, its image processor, or the frame.
        original_size: (H, W) of the image.

    Returns:
        float32 (N, H, W) on the same device.
    """
    resizer = MaskResizer(processor, original_size)
    result = torch.empty((len(logits), *original_size), device=logits.device)
    for number, plane in enumerate(resizer.to_input(logits)):
        for _, y, piece in resizer.pieces(plane):
            result[number, y : y + len(piece)] = piece
    return result


def _neighbours(start: int, stop: int, inner: int, outer: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two places of `inner` between which places start .. stop - 1 of `outer` lie, and how near the second.

    Pixel centres are aligned and the edges repeated, as with `align_corners=False`.
    """
    place = (torch.arange(start, stop, device=device, dtype=torch.float32) + 0.5) * (inner / outer) - 0.5
    place = place.clamp(min=0)
    low = place.long().clamp(max=inner - 1)
    return low, (low + 1).clamp(max=inner - 1), (place - low).clamp(0, 1)


def _reached(chosen: Tensor, inner: int, outer: int) -> tuple[int, int]:
    """Return the first place of `outer` that depends on a chosen place of `inner`, and the one after the last."""
    places = chosen.nonzero()[:, 0]
    if not len(places):
        return 0, 0
    low, high, _ = _neighbours(0, outer, inner, outer, chosen.device)
    touched = ((high >= places[0]) & (low <= places[-1])).nonzero()[:, 0]
    if not len(touched):  # an image smaller than the input takes some of its places only
        return 0, 0
    return int(touched[0]), int(touched[-1]) + 1
