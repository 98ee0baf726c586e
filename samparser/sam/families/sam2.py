"""SAM 2 and 2.1 on single images, `Sam2Model`: a Hiera of four stages, a top-down neck, images squashed to a square."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from samparser.sam.frame import Frame, Squashed
from samparser.sam.position_encodings import without_position_encodings
from samparser.sam.square_processor import IMAGENET_MEAN, IMAGENET_STD, SquareImageProcessor, SquareProcessor
from samparser.sam.wrapped import plain_model

from .attention import fused_attention
from .base import AttentionSite, Family, Features, config_of
from .held import held

_UNSTABLE = "dynamic_multimask_via_stability"


class Sam2(Family):
    """SAM 2 and SAM 2.1. Their features are the maps of the four stages: the first channels first, the others last.

    The published checkpoints are those of the model for videos; its memory is left out.

    Attributes:
        image_mean: Of the usual processor.
        image_std: Of the usual processor.
        image_processor_type: transformers' class that the usual processor is saved as.
    """

    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")
    model_class = "Sam2Model"
    processor_class = "Sam2Processor"
    neck = r"vision_encoder\.neck\.convs\.\d+"
    coefficients: ClassVar = {"tiny": 800, "small": 800, "base-plus": 848, "large": 912}
    checkpoints: ClassVar = {
        f"facebook/{version}-hiera-{size}": "Apache-2.0"
        for version in ("sam2", "sam2.1")
        for size in ("tiny", "small", "base-plus", "large")
    }
    replaces_unstable_masks = True
    image_mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    image_std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    image_processor_type: ClassVar[str] = "Sam2ImageProcessor"

    def frame(self, model_or_config: Any) -> Frame:
        """Return the squashed frame of the prompt encoder's image size."""
        return Squashed(_side(config_of(model_or_config).prompt_encoder_config.image_size))

    def processor(self, source: str | Path | None, model: nn.Module) -> Any:
        """Return the saved processor, or one that squashes to the model's input size; neither needs torchvision."""
        if source is not None:
            return SquareProcessor.from_pretrained(source)
        prompts = config_of(model).prompt_encoder_config
        size = _side(prompts.image_size)
        return SquareProcessor(
            SquareImageProcessor(
                size,
                self.image_mean,
                self.image_std,
                mask_size=4 * size // _side(prompts.patch_size),
                image_processor_type=self.image_processor_type,
            )
        )

    def encode(self, model: nn.Module, pixel_values: Tensor) -> Features:
        """Return the maps of the backbone; see `Family.encode`."""
        return self._features(super().encode(model, pixel_values))

    def embed(self, model: nn.Module, features: Features) -> dict[str, Any]:
        """Return `image_embeddings`, the maps that the mask decoder takes, finest first, each (B, C, h, w).

        The decoder's `conv_s0` and `conv_s1` run on the two finer ones, so all of them follow its training too.
        """
        plain: Any = plain_model(model)
        decoder, neck = plain.mask_decoder, plain.vision_encoder.neck
        with without_position_encodings(neck):
            maps = self._finest_first(plain, list(neck(self._entering(features))[0]))
        maps[0] = decoder.conv_s0(maps[0])
        maps[1] = decoder.conv_s1(maps[1])
        # "No memory of earlier frames" goes to the last map, before the list is cut to what the decoder takes.
        maps[-1] = maps[-1] + plain.no_memory_embedding.view(1, -1, 1, 1)
        return {"image_embeddings": maps[: len(plain.backbone_feature_sizes)]}

    def _features(self, entering: Features) -> Features:
        """Return what enters the neck as it lies in memory: read back from a file it takes the same ways, bit for bit.

        The first stage keeps the strides of the patch embedding, a convolution; pooling ends that in the others.
        """
        first, *others = entering
        return (first.permute(0, 3, 1, 2), *others)

    def _entering(self, features: Features) -> Any:
        """Return what the neck's forward takes: the inverse of `_features`."""
        first, *others = features
        return (first.permute(0, 2, 3, 1), *others)

    def _finest_first(self, plain: Any, maps: list[Tensor]) -> list[Tensor]:
        """Return the neck's maps from large to small, without those that the encoder drops."""
        return maps[-plain.num_feature_levels :][::-1]

    def single_mask(self, model: nn.Module) -> AbstractContextManager[None]:
        """Take the single mask from its own head in eval mode too, not from the three others where it is unstable.

        Holds for every copy of the mask decoder in the model, and in every thread, until the block is left.
        """
        return held(_decoders(model), _UNSTABLE, False)

    def keep_single_mask(self, model: nn.Module) -> bool:
        """Switch the replacing of unstable masks off for good: in the decoder and in what its config is saved as."""
        config = config_of(model).mask_decoder_config
        holders = [*_decoders(model), config]
        changed = any(getattr(holder, _UNSTABLE) for holder in holders)
        for holder in holders:
            setattr(holder, _UNSTABLE, False)
        return changed

    def replaces_unstable(self, model: nn.Module) -> bool:
        """Return whether that is on in a decoder of the model."""
        return any(getattr(decoder, _UNSTABLE) for decoder in _decoders(model))

    def upstream(self, model: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
        """Return the backbone."""
        plain: Any = plain_model(model)
        return {"vision_encoder.backbone": plain.vision_encoder.backbone}

    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of each stage's map: (C, h, w) of the first, (h, w, C) of the others."""
        (channels, *size), *others = stages(config)
        return [(channels, *size), *((*size, channels) for channels, *size in others)]

    def attention_layers(self, model: nn.Module) -> Sequence[AttentionSite]:
        """Return the attention of every block; the first one of a stage makes more channels than it takes."""
        plain: Any = plain_model(model)
        blocks = enumerate(plain.vision_encoder.backbone.blocks)
        return [
            fused_attention(f"vision_encoder.backbone.blocks.{index}.attn", block.attn, block.attn.dim_out)
            for index, block in blocks
        ]


def _decoders(model: nn.Module) -> list[nn.Module]:
    """Return the mask decoder and the copies of it that PEFT trains; a wrapper around them is none itself."""
    return [module for module in model.modules() if _UNSTABLE in vars(module)]


def _side(size: Any) -> int:
    """Return the side of a square that a config gives as one number or as two."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"The model's input has {size} pixels; only square ones are possible here.")
    return int(sides.pop())


def stages(config: Any) -> list[tuple[int, int, int]]:
    """Return (C, h, w) of what each stage of the backbone gives, from large to small."""
    vision = config_of(config).vision_config
    sizes = [(int(height), int(width)) for height, width in vision.backbone_feature_sizes]
    channels = list(reversed(vision.backbone_channel_list))
    # The config names the maps that the decoder takes; the neck adds a smaller one to them, of half the size.
    while len(sizes) < len(channels):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return [(channel, *size) for channel, size in zip(channels, sizes, strict=True)]
