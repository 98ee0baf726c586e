"""Features of the frozen image encoder, computed once per image and fed to the rest of the model."""

from .cache import FeatureCache

__all__ = [
    "FeatureCache",
]
