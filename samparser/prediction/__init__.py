"""Prompts in, masks at original size out, for one image or for files."""

from __future__ import annotations

from .cropped_mask import CroppedMask
from .files import PredictedFiles, predict_files
from .mask_files import SegmentedImage, write_coco, write_label_png
from .mask_generation import GeneratedMasks, generate_masks
from .predictor import SamPredictor, predict, predict_logits
from .resize import to_original_size

__all__ = [
    "CroppedMask",
    "GeneratedMasks",
    "PredictedFiles",
    "SamPredictor",
    "SegmentedImage",
    "generate_masks",
    "predict",
    "predict_files",
    "predict_logits",
    "to_original_size",
    "write_coco",
    "write_label_png",
]
