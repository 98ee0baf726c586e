"""SAM itself: loading, prompts, loss, metrics, prediction, figures. Knows nothing of how a model is tuned.

Names are imported when they are first used, so that this package is quick to import and needs torch and numpy only
until something asks for more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features import FeatureCache
    from .flips import Flipped, RandomlyFlipped
    from .grid import GeneratedMasks, generate_masks
    from .lean import lean_decoder
    from .losses import LossTerms, segmentation_loss
    from .mask_files import SegmentedImage, write_coco, write_label_png
    from .metrics import InstanceScore, ScoreTable, score_instances
    from .overlays import overlay
    from .panels import Panel, best_median_worst, draw_panels, side_by_side
    from .plots import score_curves, spectra
    from .prediction import predict, predict_logits, to_original_size
    from .prediction_files import predict_files
    from .presets import FAMILIES, Family, count_coefficients, default_processor, load_sam, neck_targets

_LAZY = {
    "FAMILIES": "presets",
    "Family": "presets",
    "FeatureCache": "features",
    "Flipped": "flips",
    "GeneratedMasks": "grid",
    "InstanceScore": "metrics",
    "LossTerms": "losses",
    "Panel": "panels",
    "RandomlyFlipped": "flips",
    "ScoreTable": "metrics",
    "SegmentedImage": "mask_files",
    "best_median_worst": "panels",
    "count_coefficients": "presets",
    "default_processor": "presets",
    "draw_panels": "panels",
    "generate_masks": "grid",
    "lean_decoder": "lean",
    "load_sam": "presets",
    "neck_targets": "presets",
    "overlay": "overlays",
    "predict": "prediction",
    "predict_files": "prediction_files",
    "predict_logits": "prediction",
    "score_curves": "plots",
    "score_instances": "metrics",
    "segmentation_loss": "losses",
    "side_by_side": "panels",
    "spectra": "plots",
    "to_original_size": "prediction",
    "write_coco": "mask_files",
    "write_label_png": "mask_files",
}

__all__ = [
    "FAMILIES",
    "Family",
    "FeatureCache",
    "Flipped",
    "GeneratedMasks",
    "InstanceScore",
    "LossTerms",
    "Panel",
    "RandomlyFlipped",
    "ScoreTable",
    "SegmentedImage",
    "best_median_worst",
    "count_coefficients",
    "default_processor",
    "draw_panels",
    "generate_masks",
    "lean_decoder",
    "load_sam",
    "neck_targets",
    "overlay",
    "predict",
    "predict_files",
    "predict_logits",
    "score_curves",
    "score_instances",
    "segmentation_loss",
    "side_by_side",
    "spectra",
    "to_original_size",
    "write_coco",
    "write_label_png",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
