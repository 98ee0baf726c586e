"""What takes the place of a model's processor while it works from features."""

from __future__ import annotations

from typing import Any

import numpy as np

from samparser.sam.families import Features

from .keys import image_key
from .store import FeatureStore


class FeatureProcessor:
    """An image processor that gives stored features instead of pixels; all else is the wrapped processor's.

    Args:
        images: transformers' image processor of the model.
        store: Where the features are.
    """

    def __init__(self, images: Any, store: FeatureStore) -> None:
        self._images, self._store = images, store

    def __call__(self, image: np.ndarray, **_: Any) -> dict[str, Features]:
        """Return `pixel_values`: the features of an image, uint8 RGB (H, W, 3), a tuple of tensors (1, ...).

        Raises:
            MissingFeaturesError: The image is not in the cache.
            DamagedFeaturesError: Its entry is damaged.
        """
        return {"pixel_values": tuple(tensor[None] for tensor in self._store.read(image_key(image)))}

    def __getattr__(self, name: str) -> Any:
        # While an instance is unpickled it has no attributes yet.
        if name.startswith("__") or name in ("_images", "_store"):
            raise AttributeError(name)
        return getattr(self._images, name)
