"""Features of the frozen image encoder, computed once per image and fed to the rest of the model."""

from __future__ import annotations

from .cache import FeatureCache

__all__ = ["FeatureCache"]
