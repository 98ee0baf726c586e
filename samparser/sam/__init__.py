"""SAM itself: its families, loading a checkpoint, what is inside a wrapper, a lean way to run its decoder."""

from __future__ import annotations

from .changes import EncoderChanges, changes_before_neck, is_tuned, mark_tuned
from .families import FAMILIES, Family, count_coefficients, family_of, neck_targets, register_family
from .frame import Frame, Padded, Squashed, frame_of
from .frame_choice import chosen_frame
from .lean import lean_decoder
from .loading import default_processor, load_sam
from .square_processor import SquareImageProcessor, SquareProcessor
from .wrapped import image_processor, plain_model

__all__ = [
    "FAMILIES",
    "EncoderChanges",
    "Family",
    "Frame",
    "Padded",
    "SquareImageProcessor",
    "SquareProcessor",
    "Squashed",
    "changes_before_neck",
    "chosen_frame",
    "count_coefficients",
    "default_processor",
    "family_of",
    "frame_of",
    "image_processor",
    "is_tuned",
    "lean_decoder",
    "load_sam",
    "mark_tuned",
    "neck_targets",
    "plain_model",
    "register_family",
]
