"""Models of the published sizes with random weights: what they cost does not depend on the weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from samparser.sam import FAMILIES


def _sam2(width: int, blocks: list[int], global_blocks: list[int], **others: Any) -> PreTrainedConfig:
    widths = [width, 2 * width, 4 * width, 8 * width]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "embed_dim_per_stage": widths,
        "blocks_per_stage": blocks,
        "global_attention_blocks": global_blocks,
        **others,
    }
    return transformers.Sam2Config(vision_config={"backbone_config": backbone, "backbone_channel_list": widths[::-1]})


def _edgetam() -> PreTrainedConfig:
    # transformers' default names the architecture under a key that timm's wrapper does not read.
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    )
    return transformers.EdgeTamConfig(vision_config={"backbone_config": backbone})


_TWO_HEADS = {"num_attention_heads": 2, "num_attention_heads_per_stage": [2, 4, 8, 16]}

PUBLISHED: dict[str, Callable[[], PreTrainedConfig]] = {
    "sam-vit-base": transformers.SamConfig,
    "sam-hq-vit-base": transformers.SamHQConfig,
    "sam2.1-hiera-tiny": transformers.Sam2Config,
    "sam2.1-hiera-small": lambda: _sam2(96, [1, 2, 11, 2], [7, 10, 13]),
    "sam2.1-hiera-base-plus": lambda: _sam2(
        112, [2, 3, 16, 3], [12, 16, 20], window_positional_embedding_background_size=[14, 14], **_TWO_HEADS
    ),
    "sam2.1-hiera-large": lambda: _sam2(
        144, [2, 6, 36, 4], [23, 33, 43], window_size_per_stage=[8, 4, 16, 8], **_TWO_HEADS
    ),
    "edgetam": _edgetam,
    "sam3-tracker": transformers.Sam3TrackerConfig,
}
"""Makes the config of a published size, by its name; EdgeTAM's model needs timm."""


def random_model(config: PreTrainedConfig) -> Any:
    """A model of a family with random weights of the size that trained ones have, in eval mode.

    Raises:
        ImportError: The model needs a package that is not installed.
    """
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[config.model_type].model_class)(config)
    return reinitialise(model).eval()


def reinitialise(model: nn.Module) -> nn.Module:
    """Give weights the size that trained ones have; transformers' own start is close to zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=max(1, parameter[0].numel()) ** -0.5)
            elif name.endswith("bias"):  # the others are the weights of norms
                parameter.zero_()
    return model
