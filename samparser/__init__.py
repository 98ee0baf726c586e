"""SAM-PARSER for Hugging Face PEFT: fine-tune the singular values of a model's weights.

A weight is split once, `W = U diag(p) V^T`; the bases `U` and `V` stay frozen and only the coefficients `p` are trained
(SAM-PARSER, https://arxiv.org/abs/2308.14604). Importing this package registers the tuner with PEFT, so that
`get_peft_model(model, SVDCoefficientConfig(...))` and `PeftModel.from_pretrained` know it.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from samparser._version import __version__
from samparser.tuner import SVDCoefficientConfig, SVDCoefficientModel, initialize_expansion

if TYPE_CHECKING:
    from samparser.methods import build
    from samparser.prediction import predict
    from samparser.sam import load_sam
    from samparser.training import evaluate, train

# PEFT asks transformers for this by an old name whenever it wraps a model: nothing that a user could act on.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

# Heavier public names and the room each one lives in; a room is imported when one of its names is first used.
_LAZY = {
    "build": "samparser.methods",
    "evaluate": "samparser.training",
    "load_sam": "samparser.sam",
    "predict": "samparser.prediction",
    "train": "samparser.training",
}

__all__ = [
    "SVDCoefficientConfig",
    "SVDCoefficientModel",
    "__version__",
    "build",
    "evaluate",
    "initialize_expansion",
    "load_sam",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'samparser' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
