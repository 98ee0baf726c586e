"""Held-out IoU: whole pictures, tight boxes, masks at the input's resolution, beside what needs no model."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import SamModel

from pretraining.samples import Photo, Window, cut, normalise, tight_box
from pretraining.scenes import Scene
from samparser.scoring.baselines import box_masks, ellipse_masks

MAX_OBJECTS = 10


@dataclass(frozen=True)
class HeldOut:
    """One picture to score: input (3, size, size), tight boxes (N, 4), bool masks (N, size, size)."""

    pixels: torch.Tensor
    boxes: torch.Tensor
    masks: np.ndarray


def hold_out(source: Scene | Photo, size: int, seed: int) -> HeldOut | None:
    """The whole source at ``size``, with at most ten of its objects; None where it has none."""
    height, width = source.image.shape[:2]
    scale = size / max(height, width)
    window = Window(0, 0, width, height, int(width * scale + 0.5), int(height * scale + 0.5))
    image, masks = cut(source, window)
    if not masks:
        return None
    chosen = np.random.default_rng(seed).permutation(len(masks))[:MAX_OBJECTS]
    padded = np.zeros((len(chosen), size, size), bool)
    for row, i in enumerate(chosen):
        padded[row, : masks[i].shape[0], : masks[i].shape[1]] = masks[i]
    boxes = torch.tensor([tight_box(mask) for mask in padded], dtype=torch.float32)
    return HeldOut(normalise(image.astype(np.float32) / 255, size), boxes, padded)


@torch.no_grad()
def mean_iou(model: SamModel, pictures: list[HeldOut]) -> float:
    """Mean IoU over all objects of the pictures."""
    scores: list[float] = []
    device = model.device
    model.eval()
    for picture in pictures:
        logits = (
            model(
                pixel_values=picture.pixels[None].to(device),
                input_boxes=picture.boxes[None].to(device),
                multimask_output=False,
            )
            .pred_masks[0]
            .float()
        )
        logits = F.interpolate(logits, picture.pixels.shape[-2:], mode="bilinear", align_corners=False)
        scores += _iou(logits[:, 0].cpu().numpy() > 0, picture.masks)
    model.train()
    return float(np.mean(scores))


def baselines(pictures: list[HeldOut]) -> dict[str, float]:
    """Mean IoU of the box itself and of the ellipse inscribed in it."""
    scores: dict[str, list[float]] = {"box": [], "ellipse": []}
    for picture in pictures:
        boxes, size = picture.boxes.numpy(), picture.masks.shape[1:]
        scores["box"] += _iou(box_masks(boxes, size), picture.masks)
        scores["ellipse"] += _iou(ellipse_masks(boxes, size), picture.masks)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _iou(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    both, either = (ours & theirs).sum((1, 2)), (ours | theirs).sum((1, 2))
    return [float(value) for value in both / np.maximum(either, 1)]
