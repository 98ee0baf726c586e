"""Masks of everything in an image, from a grid of points: SAM's mask generation, in little memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from samparser._extras import require
from samparser._words import count
from samparser.prompts.checks import check_image
from samparser.sam.frame import frame_of
from samparser.sam.loading import check_processor
from samparser.sam.modes import evaluating
from samparser.sam.wrapped import image_processor, plain_sam

from .cropped_mask import CroppedMask, planes
from .predictor import narrow
from .resize import MaskResizer

# Segment Anything's own thresholds, chosen for the published SAMs.
PRED_IOU_THRESH, STABILITY_SCORE_THRESH = 0.88, 0.95
# Where none of a model's masks reaches them, those in the best part of its own masks stay.
_OWN_PART = 0.95

_STABILITY_OFFSET = 1.0  # how far the threshold on the logits is moved, both ways, to see whether the area changes
_OVERLAP = 512 / 1500  # of neighbouring crops, as in Segment Anything
_EDGE = 20.0  # pixels; a mask that ends so near the edge of a crop goes on in the next one


class GeneratedMasks(NamedTuple):
    """What `generate_masks` found, best first.

    Attributes:
        masks: bool (N, H, W), original image size.
        scores: float32 (N,), the IoU that the model expects of each mask.
    """

    masks: np.ndarray
    scores: np.ndarray


class Thresholds(NamedTuple):
    """What a mask has to exceed to be kept; 0 keeps all."""

    pred_iou: float
    stability: float


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

    These are the steps of transformers' `pipeline("mask-generation")`, which a merged model works in too, without
    torchvision and with one mask at a time at original size.

    The model judges its masks itself. Small models expect less of their masks, and training with a mask loss alone
    does not train this judgement; so thresholds that are not given are lowered, with a warning that names them, where
    they would leave nothing.

    Args:
        model: SamModel, or a PeftModel around one. Runs in eval mode and is left as it was.
        processor: Its SamProcessor.
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
        TypeError: The model is not a SamModel.
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
    require("PIL.Image", "Generating masks from a grid")
    sam = plain_sam(model, "Mask generation")
    check_processor(model, processor)
    if points_per_side < 1 or batch < 1:
        raise ValueError(f"points_per_side and batch must be 1 or more; got {points_per_side} and {batch}.")
    check_thresholds(pred_iou_thresh, stability_score_thresh)
    image = check_image(image)
    frame = frame_of(processor)
    if min(frame.content((image.shape[0], image.shape[1]))) == 0:
        raise ValueError(narrow(image.shape[0], image.shape[1], frame.size))
    limits = Thresholds(
        PRED_IOU_THRESH if pred_iou_thresh is None else pred_iou_thresh,
        STABILITY_SCORE_THRESH if stability_score_thresh is None else stability_score_thresh,
    )
    with evaluating(model):
        grid = _Grid(sam, image_processor(processor), image, points_per_side, batch, crops)
        masks, scores = grid.masks_above(limits)
        lowered = None
        own = None if masks else grid.own_thresholds(limits, pred_iou_thresh, stability_score_thresh)
        if own is not None:
            best = grid.best()
            masks, scores = grid.masks_above(own)
            lowered = (
                f"None of {count(grid.number, 'candidate')} reached SAM's own thresholds (expected IoU above "
                f"{limits.pred_iou:g}, stability above {limits.stability:g}; the best here reach {best.pred_iou:.2f} "
                f"and {best.stability:.2f}), so the best of this model's own were taken: pred_iou_thresh "
                f"{own.pred_iou:.2f}, stability_score_thresh {own.stability:.2f}. Give them to decide yourself."
            )
    kept = non_maximum_suppression(_corners(masks), torch.tensor(scores), nms_thresh).tolist()
    chosen = np.array([scores[index] for index in kept], dtype=np.float32)
    return CroppedGeneration([masks[index] for index in kept], chosen, lowered)


def check_thresholds(pred_iou_thresh: float | None, stability_score_thresh: float | None) -> None:
    """Make sure that thresholds are numbers from 0.

    Raises:
        ValueError: One is not.
    """
    for name, value in (("pred_iou_thresh", pred_iou_thresh), ("stability_score_thresh", stability_score_thresh)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must be 0 or more (0 keeps all masks, 1 hardly any); got {value}.")


class _Grid:
    """The candidate masks of one image: three for each point of a grid on the image and on each crop of it."""

    def __init__(self, sam: Any, images: Any, image: np.ndarray, points: int, batch: int, crops: int) -> None:
        picture = require("PIL.Image", "Generating masks from a grid").fromarray(image)
        self._sam, self._images, self._batch = sam, images, batch
        self._size = (image.shape[0], image.shape[1])
        boxes, self._points, parts, self._labels = images.generate_crop_boxes(
            picture, frame_of(images).size, crops, _OVERLAP, points, 1
        )
        self._boxes = [tuple(int(side) for side in box) for box in boxes.tolist()]
        pixels = images(images=parts, return_tensors="pt")["pixel_values"]
        parameter = next(sam.parameters())
        self._embeddings = [
            sam.get_image_embeddings(part[None].to(parameter.device, parameter.dtype)) for part in pixels
        ]
        self._judged: list[Thresholds] = []
        self.number = 3 * self._points.shape[1] * len(self._boxes)

    def masks_above(self, limits: Thresholds) -> tuple[list[CroppedMask], list[float]]:
        """Return the masks that exceed the thresholds, and the IoU that the model expects of each."""
        masks, scores = [], []
        for box, logits, expected in self._candidates():
            resizer = MaskResizer(self._images, (box[3] - box[1], box[2] - box[0]))
            for number in range(len(logits)):
                if limits.pred_iou > 0 and not expected[number] > limits.pred_iou:
                    continue
                stability, (x, y, part) = _stability_and_mask(resizer, resizer.to_input(logits[number][None])[0])
                if limits.stability > 0 and not stability > limits.stability:
                    continue
                mask = CroppedMask.of(part, (x + box[0], y + box[1]), self._size)
                if not _cut_off(mask, box, self._size):
                    masks.append(mask)
                    scores.append(float(expected[number]))
        return masks, scores

    def best(self) -> Thresholds:
        """Return the highest of both judgements among the candidates."""
        return Thresholds(*np.max(self._judged, axis=0))

    def own_thresholds(self, limits: Thresholds, pred_iou: float | None, stability: float | None) -> Thresholds | None:
        """Return thresholds that the best part of the candidates exceeds; None where what is given leaves none.

        Args:
            limits: What none of the candidates exceeds.
            pred_iou: Given by the caller, so it stays.
            stability: Likewise.
        """
        if pred_iou is not None and stability is not None:
            return None
        judged = np.array(self._judged)
        # First the sure ones, then among them those about as stable as the half of them; what was judged at SAM's
        # output size differs a little from what is compared, at original size.
        if pred_iou is None:
            pred_iou = min(limits.pred_iou, float(np.quantile(judged[:, 0], _OWN_PART)))
        sure = judged[judged[:, 0] > pred_iou]
        if not len(sure):
            return None
        if stability is None:
            stability = min(limits.stability, 0.9 * float(np.median(sure[:, 1])))
        return Thresholds(pred_iou, stability)

    def _candidates(self) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
        """Yield the box of the crop, logits (n, h, w) at SAM's output size and expected IoUs (n,), in batches."""
        first = not self._judged
        for crop, box in enumerate(self._boxes):
            for start in range(0, self._points.shape[1], self._batch):
                chosen = slice(start, start + self._batch)
                output = self._sam(
                    image_embeddings=self._embeddings[crop],
                    input_points=self._points[:, chosen, crop : crop + 1].to(self._sam.device),
                    input_labels=self._labels[:, chosen, crop : crop + 1].to(self._sam.device),
                )
                logits, expected = output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten().float().cpu()
                if first:
                    inner, outer = ((logits > level).sum((1, 2)) for level in (_STABILITY_OFFSET, -_STABILITY_OFFSET))
                    self._judged += map(Thresholds, expected.tolist(), (inner / outer.clamp(1)).tolist())
                yield box, logits, expected


def _stability_and_mask(resizer: MaskResizer, plane: Tensor) -> tuple[np.float32, tuple[int, int, np.ndarray]]:
    """Return how much of the area stays when the threshold rises, and the mask as `MaskResizer.mask` does."""
    inner = outer = 0
    parts: list[np.ndarray] = []
    corner = (0, 0)
    for x, y, piece in resizer.pieces(plane, -_STABILITY_OFFSET):
        inner += int((piece > _STABILITY_OFFSET).sum())
        outer += int((piece > -_STABILITY_OFFSET).sum())
        corner = corner if parts else (x, y)
        parts.append((piece > 0).cpu().numpy())
    mask = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=bool)
    return np.float32(inner) / np.float32(max(outer, 1)), (*corner, mask)


def _cut_off(mask: CroppedMask, crop: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Return whether a mask ends near an edge of its crop that is no edge of the image."""
    corners = _corners([mask])[0]
    image = torch.tensor([0, 0, size[1], size[0]], dtype=torch.float32)
    near_crop = (corners - torch.tensor(crop, dtype=torch.float32)).abs() <= _EDGE
    near_image = (corners - image).abs() <= _EDGE
    return bool((near_crop & ~near_image).any())


def _corners(masks: list[CroppedMask]) -> Tensor:
    """Return the first and the last pixel of each mask, float32 (N, 4), as transformers' pipeline has them."""
    boxes = [(x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)) for x0, y0, x1, y1 in (mask.box for mask in masks)]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


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
