"""SAM 3's tracker on single images, `Sam3TrackerModel`: the part of SAM 3 that answers each prompt by one mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from samparser.sam.square_processor import HALF
from samparser.sam.wrapped import plain_model

from .base import AttentionSite, Features, Rows, config_of
from .sam2 import Sam2


class Sam3Tracker(Sam2):
    """SAM 3's tracker. Its features are one map, channels last, of which the neck makes one a level.

    Published in one checkpoint with the detector of `Sam3Model`, which is left out, as the memory for videos is.
    """

    model_types: ClassVar = ("sam3_tracker", "sam3_tracker_video", "sam3_video")
    model_class = "Sam3TrackerModel"
    processor_class = "Sam3TrackerProcessor"
    neck = r"vision_encoder\.neck\.fpn_layers\.\d+\.proj[12]"
    coefficients: ClassVar = {"default": 1536}
    checkpoints: ClassVar = {"facebook/sam3": "SAM License, after Meta gave access"}
    image_mean: ClassVar = HALF
    image_std: ClassVar = HALF
    image_processor_type = "Sam3ImageProcessor"

    def neck_of(self, model: nn.Module) -> str:
        """Return the expression for the levels that reach a mask.

        The neck has one level for each scale factor, the decoder takes as many as there are feature sizes, and the
        model computes the others (one of four in SAM 3) for nothing.
        """
        vision = config_of(model).vision_config
        return live_levels(min(len(vision.scale_factors), len(vision.backbone_feature_sizes)))

    def idle(self, model: nn.Module) -> tuple[str, ...]:
        """Return the levels of the neck that reach no mask, and the embedding that goes to the last of them."""
        vision = config_of(model).vision_config
        levels, live = len(vision.scale_factors), len(vision.backbone_feature_sizes)
        unused = tuple(f"vision_encoder.neck.fpn_layers.{level}" for level in range(live, levels))
        return (*unused, "no_memory_embedding") if unused else ()

    def _features(self, entering: Features) -> Features:
        return (entering[0].permute(0, 2, 3, 1),)

    def _entering(self, features: Features) -> Any:
        return features[0].permute(0, 3, 1, 2)

    def _finest_first(self, plain: Any, maps: list[Tensor]) -> list[Tensor]:
        return maps

    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of the map, (h, w, C)."""
        config = config_of(config)
        backbone = config.vision_config.backbone_config
        side = self.frame(config).size // backbone.patch_size
        return [(side, side, backbone.hidden_size)]

    def attention_layers(self, model: nn.Module) -> Sequence[AttentionSite]:
        """Return the attention of every layer; queries, keys and values come from a layer each."""
        plain: Any = plain_model(model)
        sites = []
        for index, layer in enumerate(plain.vision_encoder.backbone.layers):
            name, attention = f"vision_encoder.backbone.layers.{index}.attention", layer.attention
            parts = [
                Rows(f"{name}.{part}_proj", getattr(attention, f"{part}_proj"), slice(0, attention.hidden_size))
                for part in "qkvo"
            ]
            sites.append(AttentionSite(name, attention, *parts))
        return sites


def live_levels(count: int) -> str:
    """Return the expression for the convolutions of the first levels of SAM 3's neck."""
    return rf"vision_encoder\.neck\.fpn_layers\.({'|'.join(map(str, range(count)))})\.proj[12]"
