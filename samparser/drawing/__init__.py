"""Figures: overlays of masks, panels side by side, score curves, spectra, contact sheets."""

from __future__ import annotations

from .mistakes import CloseUp, draw_mistakes, mistakes
from .overlays import overlay
from .panels import Panel, best_median_worst, draw_panels, side_by_side
from .plots import score_curves, spectra

__all__ = [
    "CloseUp",
    "Panel",
    "best_median_worst",
    "draw_mistakes",
    "draw_panels",
    "mistakes",
    "overlay",
    "score_curves",
    "side_by_side",
    "spectra",
]
