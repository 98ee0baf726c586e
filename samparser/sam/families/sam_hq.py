"""SAM-HQ, `SamHQModel`: SAM whose decoder also sees the tokens after the encoder's first layer of global attention."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from samparser.sam.wrapped import plain_model

from .base import Features, config_of
from .sam import Sam


class SamHQ(Sam):
    """SAM-HQ. Its features are what enters the neck, and the tokens that the decoder makes finer masks of."""

    model_types = ("sam_hq",)
    model_class = "SamHQModel"
    processor_class = "SamHQProcessor"
    once_an_image = 0.5
    checkpoints: ClassVar = {f"syscv-community/sam-hq-vit-{size}": "Apache-2.0" for size in ("base", "large", "huge")}

    def encode(self, model: nn.Module, pixel_values: Tensor) -> Features:
        """Return what enters the neck and, of the layers of global attention, what the first one gives.

        The decoder takes a list of what all of them give and uses its first item alone.
        """
        layer = _first_global_layer(model)
        if layer is None:
            return super().encode(model, pixel_values)
        given: list[Tensor] = []
        thread = threading.get_ident()

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            if threading.get_ident() == thread:  # a hook sees the forwards of every thread
                given.append(output)

        handle = layer.register_forward_hook(keep)
        try:
            entering = super().encode(model, pixel_values)
        finally:
            handle.remove()
        return (*entering, given[0])

    def embed(self, model: nn.Module, features: Features) -> dict[str, Any]:
        """Return `image_embeddings` (B, C, h, w), and `intermediate_embeddings`, a list of one tensor (B, h, w, C)."""
        embedded = super().embed(model, features)
        return embedded | ({"intermediate_embeddings": list(features[1:])} if len(features) > 1 else {})

    def decode(
        self, model: nn.Module, embedded: Mapping[str, Any], prompts: Mapping[str, Tensor], multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of SAM's mask and the finer one, as the model does by default.

        Raises:
            ValueError: `embedded` lacks the intermediate embeddings. The model would give other masks without a word.
        """
        if not embedded.get("intermediate_embeddings") and _first_global_layer(model) is not None:
            raise ValueError(
                "SAM-HQ needs intermediate_embeddings beside image_embeddings: without them its masks are others. "
                "Give what `embed` returns, or both of what get_image_embeddings returns."
            )
        return super().decode(model, embedded, prompts, multimask)

    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of the tokens, (h, w, C), twice: what enters the neck, and after the first global layer."""
        vision = config_of(config).vision_config
        has_global = any(index < vision.num_hidden_layers for index in vision.global_attn_indexes)
        return super().feature_shapes(config) * (2 if has_global else 1)

    def embedding_shape(self, config: Any) -> tuple[int, ...] | None:
        """Return None: the decoder takes more than the embeddings."""
        return None


def _first_global_layer(model: nn.Module) -> nn.Module | None:
    """Return the first layer of the encoder whose attention is not within windows."""
    plain: Any = plain_model(model)
    return next((layer for layer in plain.vision_encoder.layers if getattr(layer, "window_size", None) == 0), None)
