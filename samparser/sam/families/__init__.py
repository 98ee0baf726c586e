"""The families of the SAM line: what each differs in, which one a model is of, and where its neck is."""

from __future__ import annotations

from .base import AttentionSite, Family, Features, IncompleteCheckpointError, Rows
from .necks import count_coefficients, neck_targets
from .registry import FAMILIES, family_of, register_family
from .sam import Sam

__all__ = [
    "FAMILIES",
    "AttentionSite",
    "Family",
    "Features",
    "IncompleteCheckpointError",
    "Rows",
    "Sam",
    "count_coefficients",
    "family_of",
    "neck_targets",
    "register_family",
]
