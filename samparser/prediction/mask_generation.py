"""Masks of everything in an image, from a grid of points: SAM's mask generation for every family, in little memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from samparser._words import count
from samparser.prompts.checks import check_image

from .cropped_mask import CroppedMask, planes
from .grid_points import Box, crop_boxes, point_grid
from .mask_filters import (
    PRED_IOU_THRESH,
    STABILITY_SCORE_THRESH,
    Thresholds,
    check_thresholds,
    corners_of,
    is_cut_off,
    judgements,
    own_thresholds,
    stability_and_mask,
)
from .predictor import SamPredictor
from .resize import MaskResizer
from .suppression import non_maximum_suppression


class GeneratedMasks(NamedTuple):
    """What `generate_masks` found, best first.

    Attributes:
        masks: bool (N, H, W), original image size.
        scores: float32 (N,), the IoU that the model expects of each mask.
    """

    masks: np.ndarray
    scores: np.ndarray


def generate_masks(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    *,
    points_per_side: int = 32,
    batch: int = 16,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    nms_thresh: float = 0.7,
    crops: int = 0,
) -> GeneratedMasks:
    """Segment everything: a point prompt at each node of a grid, poor masks dropped, duplicates removed.

    The steps are those of Segment Anything and of transformers' `pipeline("mask-generation")`, which a merged model
    works in too. Here they need no torchvision, and one crop's embedding and one mask at original size are there at a
    time.

    The model judges its masks itself. Small models expect less of their masks, and training with a mask loss alone
    does not train this judgement; so thresholds that are not given are lowered, with a warning that names them, where
    they would leave nothing.

    Args:
        model: A model of a SAM family, or a PeftModel around one. Runs in eval mode and is left as it was.
        processor: Its processor, or the image processor alone.
        image: uint8 RGB (H, W, 3).
        points_per_side: Grid of so many points per side; each gives three candidate masks.
        batch: Points decoded at a time: bounds memory, changes nothing else.
        pred_iou_thresh: Candidates below this expected IoU are dropped; 0 keeps all. None: 0.88, lowered as above.
        stability_score_thresh: Candidates whose area changes much when the threshold on the logits moves are dropped; 0
            keeps all. None: 0.95, lowered as above.
        nms_thresh: Of two candidates whose boxes overlap more than this (IoU), the better stays.
        crops: Layers of overlapping crops that are segmented besides the whole image: 4 more for 1, 20 more for 2.

    Raises:
        ValueError: The image is not uint8 RGB, the processor does not fit the model, or a number is out of range.
        TypeError: The model is of no SAM family.
    """
    found = generate_cropped(
        model,
        processor,
        image,
        points_per_side=points_per_side,
        batch=batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        nms_thresh=nms_thresh,
        crops=crops,
    )
    if found.lowered is not None:
        warnings.warn(found.lowered, stacklevel=2)
    size = (image.shape[0], image.shape[1])
    return GeneratedMasks(planes(found.masks, len(found.masks), size), found.scores)


class CroppedGeneration(NamedTuple):
    """What `generate_cropped` found, best first.

    Attributes:
        masks: The masks inside their boxes.
        scores: float32 (N,), the IoU that the model expects of each mask.
        lowered: That thresholds were lowered, and to what, as a sentence; None where they were not.
    """

    masks: list[CroppedMask]
    scores: np.ndarray
    lowered: str | None = None


def generate_cropped(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    *,
    points_per_side: int,
    batch: int,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    nms_thresh: float = 0.7,
    crops: int = 0,
) -> CroppedGeneration:
    """Do what `generate_masks` does, and return the masks inside their boxes."""
    if points_per_side < 1 or batch < 1:
        raise ValueError(f"points_per_side and batch must be 1 or more; got {points_per_side} and {batch}.")
    if crops < 0:
        raise ValueError(f"crops must be 0 or more layers; got {crops}.")
    check_thresholds(pred_iou_thresh, stability_score_thresh)
    grid = _Grid(SamPredictor(model, processor), check_image(image), points_per_side, batch, crops)
    limits = Thresholds(
        PRED_IOU_THRESH if pred_iou_thresh is None else pred_iou_thresh,
        STABILITY_SCORE_THRESH if stability_score_thresh is None else stability_score_thresh,
    )
    masks, scores = grid.masks_above(limits)
    lowered = None
    own = None if masks else own_thresholds(grid.judged, limits, pred_iou_thresh, stability_score_thresh)
    if own is not None:
        best = Thresholds(*np.max(grid.judged, axis=0))
        masks, scores = grid.masks_above(own)
        lowered = (
            f"None of {count(len(grid.judged), 'candidate')} reached SAM's own thresholds (expected IoU above "
            f"{limits.pred_iou:g}, stability above {limits.stability:g}; the best here reach {best.pred_iou:.2f} "
            f"and {best.stability:.2f}), so the best of this model's own were taken: pred_iou_thresh "
            f"{own.pred_iou:.2f}, stability_score_thresh {own.stability:.2f}. Give them to decide yourself."
        )
    kept = non_maximum_suppression(corners_of(masks), torch.tensor(scores), nms_thresh).tolist()
    chosen = np.array([scores[index] for index in kept], dtype=np.float32)
    return CroppedGeneration([masks[index] for index in kept], chosen, lowered)


class _Grid:
    """The candidate masks of one image: three for each point of a grid on the image and on each crop of it.

    Attributes:
        judged: The model's judgements of all candidates, known once they were looked at.
    """

    def __init__(self, predictor: SamPredictor, image: np.ndarray, points: int, batch: int, crops: int) -> None:
        self._predictor, self._image, self._points, self._batch = predictor, image, points, batch
        self._size = (image.shape[0], image.shape[1])
        self._boxes = crop_boxes(self._size, crops)
        self._shown: Box | None = None
        self.judged: list[Thresholds] = []

    def masks_above(self, limits: Thresholds) -> tuple[list[CroppedMask], list[float]]:
        """Return the masks that exceed the thresholds, and the IoU that the model expects of each."""
        masks, scores = [], []
        for box, resizer, logits, expected in self._candidates():
            for number in range(len(logits)):
                if limits.pred_iou > 0 and not expected[number] > limits.pred_iou:
                    continue
                stability, (x, y, part) = stability_and_mask(resizer, resizer.to_input(logits[number][None])[0])
                if limits.stability > 0 and not stability > limits.stability:
                    continue
                mask = CroppedMask.of(part, (x + box[0], y + box[1]), self._size)
                if not is_cut_off(mask, box, self._size):
                    masks.append(mask)
                    scores.append(float(expected[number]))
        return masks, scores

    def _candidates(self) -> Iterator[tuple[Box, MaskResizer, Tensor, Tensor]]:
        """Yield the box of the crop, the way to its size, logits (n, h, w) and expected IoUs (n,), in batches."""
        first = not self.judged
        for box in self._boxes:
            x0, y0, x1, y1 = box
            if box != self._shown:  # the embedding of the crop before makes room
                self._predictor.set_image(self._image[y0:y1, x0:x1])
                self._shown = box
            points = point_grid((y1 - y0, x1 - x0), self._points)
            for logits, expected in self._predictor.candidates(points, batch=self._batch):
                if first:
                    self.judged += judgements(logits, expected)
                yield box, self._predictor.resizer, logits, expected
