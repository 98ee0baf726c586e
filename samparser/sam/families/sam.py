"""SAM of 2023, `SamModel`: a plain ViT, a neck of two convolutions, images padded to a square."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from samparser.sam.frame import Frame, Padded
from samparser.sam.quiet import quiet_transformers
from samparser.sam.square_processor import SquareProcessor
from samparser.sam.square_settings import is_square
from samparser.sam.wrapped import plain_model

from .attention import fused_attention
from .base import AttentionSite, Family, Features, config_of


class Sam(Family):
    """SAM, and what others made with its architecture: SlimSAM, MedSAM."""

    model_types = ("sam",)
    model_class = "SamModel"
    processor_class = "SamProcessor"
    neck = r"vision_encoder\.neck\.conv[12]"
    coefficients: ClassVar = {"base": 512, "large": 512, "huge": 512}
    checkpoints: ClassVar = {f"facebook/sam-vit-{size}": "Apache-2.0" for size in ("base", "large", "huge")}
    pointwise_first = "vision_encoder.neck.conv1"

    def frame(self, model_or_config: Any) -> Frame:
        """Return the padded frame of the image encoder's size."""
        return Padded(config_of(model_or_config).vision_config.image_size)

    def processor(self, source: str | Path | None, model: nn.Module) -> Any:
        """Return the saved processor, or one that pads and normalises as ImageNet does.

        One that squashes is saved with models that were trained so.
        """
        import transformers

        if source is not None and is_square(source):
            return SquareProcessor.from_pretrained(source)
        processor_class = getattr(transformers, self.processor_class)
        with quiet_transformers():
            if source is not None:
                return processor_class.from_pretrained(source, trust_remote_code=False)
            vision = config_of(model).vision_config
            size, mask = vision.image_size, 4 * vision.image_size // vision.patch_size
            return processor_class(
                self._image_processor_class()(
                    size={"longest_edge": size},
                    pad_size={"height": size, "width": size},
                    mask_size={"longest_edge": mask},
                    mask_pad_size={"height": mask, "width": mask},
                )
            )

    def _image_processor_class(self) -> type:
        from transformers import SamImageProcessor

        return SamImageProcessor

    def embed(self, model: nn.Module, features: Features) -> dict[str, Any]:
        """Return `image_embeddings` (B, C, h, w)."""
        sam: Any = plain_model(model)
        return {"image_embeddings": sam.vision_encoder.neck(features[0])}

    def upstream(self, model: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
        """Return patch embedding, position embedding and transformer layers."""
        encoder: Any = plain_model(model)
        encoder = encoder.vision_encoder
        parts = {"patch_embed": encoder.patch_embed, "pos_embed": encoder.pos_embed, "layers": encoder.layers}
        return {f"vision_encoder.{name}": part for name, part in parts.items() if part is not None}

    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of the tokens, (h, w, C)."""
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        return [(side, side, vision.hidden_size)]

    def embedding_shape(self, config: Any) -> tuple[int, ...] | None:
        """Return (C, h, w): a third of the features for ViT-B."""
        (height, width, _), *_ = self.feature_shapes(config)
        return config.vision_config.output_channels, height, width

    def attention_layers(self, model: nn.Module) -> Sequence[AttentionSite]:
        """Return the attention of every transformer layer; queries, keys and values come from one layer, `qkv`."""
        sam: Any = plain_model(model)
        width = config_of(sam).vision_config.hidden_size
        return [
            fused_attention(f"vision_encoder.layers.{index}.attn", layer.attn, width)
            for index, layer in enumerate(sam.vision_encoder.layers)
        ]
