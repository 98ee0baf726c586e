"""EdgeTAM on single images, `EdgeTamModel`: SAM 2 with a convolutional encoder, which is timm's RepViT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from samparser._extras import require

from .base import AttentionSite, Features
from .sam2 import Sam2, stages


class EdgeTam(Sam2):
    """EdgeTAM. Its features are the maps of the four stages, channels first; the encoder has no attention."""

    model_types = ("edgetam", "edgetam_video")
    model_class = "EdgeTamModel"
    coefficients: ClassVar = {"default": 592}
    checkpoints: ClassVar = {"yonigozlan/EdgeTAM-hf": "Apache-2.0"}
    # Older ones ask the hub for the configuration of timm's model, whatever the checkpoint says.
    needs_transformers = "5.20"

    def load_model(self, source: str | Path, config: Any, **kwargs: Any) -> nn.Module:
        """Load a checkpoint; see `Family.load_model`.

        Raises:
            ImportError: timm is not installed, or does not work with this torch.
        """
        if _takes_timm(config):
            _require_timm()
        return super().load_model(source, config, **kwargs)

    def model_from_config(self, config: Any) -> nn.Module:
        """Build a model of a config; see `Family.model_from_config`.

        Raises:
            ImportError: timm is not installed, or does not work with this torch.
        """
        if _takes_timm(config):
            _require_timm()
        return super().model_from_config(config)

    def _features(self, entering: Features) -> Features:
        return tuple(stage.permute(0, 3, 1, 2) for stage in entering)

    def _entering(self, features: Features) -> Any:
        return [stage.permute(0, 2, 3, 1) for stage in features]

    def feature_shapes(self, config: Any) -> list[tuple[int, ...]]:
        """Return the shape of each stage's map, (C, h, w)."""
        return list(stages(config))

    def attention_layers(self, model: nn.Module) -> list[AttentionSite]:
        """Return none: the encoder is convolutional."""
        return []


def _takes_timm(config: Any) -> bool:
    backbone: str = config.vision_config.backbone_config.model_type
    return backbone == "timm_wrapper"


def _require_timm() -> None:
    try:
        require("timm", "EdgeTAM's image encoder", extra="edgetam")
    except ImportError:
        raise
    except Exception as error:  # torchvision for another torch fails in its own ways
        raise ImportError(
            f"EdgeTAM's image encoder needs timm, which cannot be imported here: {error} Its torchvision has to be the "
            "one for the installed torch: take both from the same index, https://pytorch.org/get-started/locally."
        ) from error
