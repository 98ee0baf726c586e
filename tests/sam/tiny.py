"""Small random models of every SAM family, with weights of a trained model's size: built in a moment, no download."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from samparser.sam import FAMILIES
from tests.conftest import make_tiny_sam, reinitialise, tiny_sam_config

WIDTH = 32
"""Channels of the neck's maps."""

DECODER = {"hidden_size": WIDTH, "mlp_dim": 48, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


class TinyStagesConfig(PreTrainedConfig):
    """Config of `TinyStages`."""

    model_type = "tiny_stages"
    channels: list[int] | None = None


class TinyStages(PreTrainedModel):
    """Four convolutions with batch norms in the place of EdgeTAM's RepViT, which needs timm; gives what it gives."""

    config_class = TinyStagesConfig
    base_model_prefix = "tiny_stages"
    main_input_name = "pixel_values"

    def __init__(self, config: TinyStagesConfig) -> None:
        super().__init__(config)
        widths = [3, *config.channels]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(below, width, 3, stride, 1), nn.BatchNorm2d(width), nn.GELU())
            for below, width, stride in zip(widths, widths[1:], (4, 2, 2, 2), strict=False)
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: object) -> SimpleNamespace:
        maps = []
        for stage in self.stages:
            pixel_values = stage(pixel_values)
            maps.append(pixel_values)
        return SimpleNamespace(last_hidden_state=maps, hidden_states=None)


AutoConfig.register("tiny_stages", TinyStagesConfig)
AutoModel.register(TinyStagesConfig, TinyStages)


def _sam_hq(seed: int) -> nn.Module:
    # The first layer has global attention: what it gives is not what enters the neck.
    parts = tiny_sam_config(global_attn_indexes=[0]).to_dict()
    decoder = parts["mask_decoder_config"] | {"vit_dim": 24, "model_type": "sam_hq_mask_decoder"}
    config = transformers.SamHQConfig(
        vision_config={name: value for name, value in parts["vision_config"].items() if name != "model_type"},
        prompt_encoder_config={
            name: value for name, value in parts["prompt_encoder_config"].items() if name != "model_type"
        },
        mask_decoder_config=decoder,
    )
    return transformers.SamHQModel(config)


def _sam2_parts(backbone: dict[str, object]) -> dict[str, dict[str, object]]:
    return {
        "vision_config": {
            "backbone_config": backbone,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": WIDTH,
        },
        "prompt_encoder_config": {
            "hidden_size": WIDTH,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": DECODER,
    }


def sam2_parts() -> dict[str, dict[str, object]]:
    """Configs of the parts of a small SAM 2, also for its model for videos."""
    return _sam2_parts(
        {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "embed_dim_per_stage": [8, 16, 32, 64],
            "blocks_per_stage": [1, 2, 2, 1],
            "num_attention_heads_per_stage": [1, 2, 2, 4],
            "window_size_per_stage": [4, 4, 4, 2],
            # Not the first block of a stage: transformers divides by its window size there.
            "global_attention_blocks": [4],
            "image_size": [64, 64],
            "window_positional_embedding_background_size": [4, 4],
        }
    )


def _sam2(seed: int) -> nn.Module:
    return transformers.Sam2Model(transformers.Sam2Config(**sam2_parts()))


def _edgetam(seed: int) -> nn.Module:
    parts = _sam2_parts({"model_type": "tiny_stages", "channels": [8, 16, 32, 64]})
    return transformers.EdgeTamModel(transformers.EdgeTamConfig(**parts))


def sam3_parts(scale_factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)) -> dict[str, dict[str, object]]:
    """Configs of the parts of a small SAM 3 tracker, also within a config for videos."""
    return {
        "vision_config": {
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "window_size": 2,
                "global_attn_indexes": [1],
                "pretrain_image_size": 28,
            },
            "fpn_hidden_size": WIDTH,
            "scale_factors": list(scale_factors),
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        "prompt_encoder_config": {
            "hidden_size": WIDTH,
            "image_size": 56,
            "patch_size": 14,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": DECODER,
    }


def _sam3_tracker(seed: int) -> nn.Module:
    return transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**sam3_parts()))


_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "sam": make_tiny_sam,
    "sam_hq": _sam_hq,
    "sam2": _sam2,
    "edgetam": _edgetam,
    "sam3_tracker": _sam3_tracker,
}

HERE = Version(transformers.__version__)

TINY = tuple(name for name in _BUILDERS if Version(FAMILIES[name].needs_transformers) <= HERE)
"""Model types that `make_tiny` builds: one of every family that the installed transformers can load."""


def make_tiny(model_type: str, seed: int = 0) -> nn.Module:
    """A new small model of a family in eval mode; the same seed gives the same weights."""
    if model_type not in TINY:
        pytest.skip(f"transformers {HERE} has no {model_type}; {FAMILIES[model_type].needs_transformers} has")
    torch.manual_seed(seed)
    model = reinitialise(_BUILDERS[model_type](seed), seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()
