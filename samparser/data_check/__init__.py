"""Read a whole data set once and say whether it can be trained on."""

from __future__ import annotations

from .check import check_dataset
from .report import CheckReport

__all__ = ["CheckReport", "check_dataset"]
