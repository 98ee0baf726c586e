"""Masks of everything in an image, from a grid of points: transformers' mask generation, without torchvision."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from samparser._extras import require
from samparser.prompts.checks import check_image
from samparser.sam.loading import check_processor
from samparser.sam.modes import evaluating
from samparser.sam.wrapped import image_processor, plain_sam


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
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    nms_thresh: float = 0.7,
    crops: int = 0,
) -> GeneratedMasks:
    """Segment everything: a point prompt at each node of a grid, poor masks dropped, duplicates removed.

    This is `pipeline("mask-generation")` of transformers with its last step, the removal of duplicates, done here,
    because transformers needs torchvision for it. A merged model works in the plain pipeline too.

    The model judges its masks itself (`pred_iou_thresh`). Training with a mask loss alone does not train this
    judgement: if a tuned model keeps too few or too many masks, move the thresholds.

    Args:
        model: SamModel, or a PeftModel around one. Runs in eval mode and is left as it was.
        processor: Its SamProcessor.
        image: uint8 RGB (H, W, 3).
        points_per_side: Grid of so many points per side; each gives three candidate masks.
        batch: Points decoded at a time; three masks of original size each, so this bounds memory.
        pred_iou_thresh: Candidates below this expected IoU are dropped; 0 keeps all.
        stability_score_thresh: Candidates whose area changes much when the threshold moves are dropped; 0 keeps all.
        nms_thresh: Of two candidates whose boxes overlap more than this (IoU), the better stays.
        crops: Layers of overlapping crops that are segmented besides the whole image: 4 more for 1, 20 more for 2.

    Raises:
        ValueError: The image is not uint8 RGB, or the processor does not fit the model.
        TypeError: The model is not a SamModel.
    """
    pillow = require("PIL.Image", "Generating masks from a grid")
    from transformers import MaskGenerationPipeline

    from samparser.data.readers.segmentations import rle_mask

    sam = plain_sam(model, "Mask generation")
    check_processor(model, processor)
    if points_per_side < 1 or batch < 1:
        raise ValueError(f"points_per_side and batch must be 1 or more; got {points_per_side} and {batch}.")

    class Pipeline(MaskGenerationPipeline):
        def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:
            return list(model_outputs)

    image = check_image(image)
    with evaluating(model):
        parts = Pipeline(model=sam, image_processor=image_processor(processor))(
            pillow.fromarray(image),
            points_per_batch=batch,
            points_per_crop=points_per_side,
            crops_n_layers=crops,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
        )
    encodings = [encoding for part in parts for encoding in part["masks"]]
    if not encodings:
        return GeneratedMasks(np.zeros((0, *image.shape[:2]), dtype=bool), np.zeros(0, dtype=np.float32))
    scores = torch.cat([part["iou_scores"] for part in parts]).float().cpu()
    boxes = torch.cat([part["boxes"] for part in parts]).float().cpu()
    kept = non_maximum_suppression(boxes, scores, nms_thresh).tolist()
    return GeneratedMasks(
        np.stack([rle_mask(encodings[index], *image.shape[:2]) for index in kept]), scores[kept].numpy()
    )


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
