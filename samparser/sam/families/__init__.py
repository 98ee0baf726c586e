"""The families of the SAM line: what each differs in, which one a model is of, and where its neck is."""

from __future__ import annotations

from .base import AttentionSite, Family, Features, IncompleteCheckpointError, Rows, config_of
from .edgetam import EdgeTam
from .necks import count_coefficients, neck_targets
from .registry import FAMILIES, family_of, family_of_config, register_family
from .sam import Sam
from .sam2 import Sam2
from .sam3 import Sam3Tracker
from .sam_hq import SamHQ

__all__ = [
    "FAMILIES",
    "AttentionSite",
    "EdgeTam",
    "Family",
    "Features",
    "IncompleteCheckpointError",
    "Rows",
    "Sam",
    "Sam2",
    "Sam3Tracker",
    "SamHQ",
    "config_of",
    "count_coefficients",
    "family_of",
    "family_of_config",
    "neck_targets",
    "register_family",
]
