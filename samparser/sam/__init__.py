"""SAM itself: its families, loading a checkpoint, a lean way to run its decoder. Never asks how a model is tuned."""

from .lean import lean_decoder
from .presets import FAMILIES, Family, count_coefficients, default_processor, load_sam, neck_targets

__all__ = [
    "FAMILIES",
    "Family",
    "count_coefficients",
    "default_processor",
    "lean_decoder",
    "load_sam",
    "neck_targets",
]
