"""SAM itself: its families, loading a checkpoint, what is inside a wrapper, a lean way to run its decoder."""

from __future__ import annotations

from .families import FAMILIES, Family, count_coefficients, neck_targets
from .lean import lean_decoder
from .loading import default_processor, load_sam
from .square_processor import SquareImageProcessor, SquareProcessor
from .wrapped import EncoderChanges, changes_before_neck, image_processor, plain_model

__all__ = [
    "FAMILIES",
    "EncoderChanges",
    "Family",
    "SquareImageProcessor",
    "SquareProcessor",
    "changes_before_neck",
    "count_coefficients",
    "default_processor",
    "image_processor",
    "lean_decoder",
    "load_sam",
    "neck_targets",
    "plain_model",
]
