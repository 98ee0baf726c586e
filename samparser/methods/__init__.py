"""Every way to tune a SAM that is compared here, behind one call.

model = build("samparser", model)         # or "lora", "adapter", "decoder", "full", ...: see METHODS
save_trained(model, "out")                # what was trained, nothing of the base
model = load_trained(base_model, "out")
plain = merged(model)                     # a plain model of transformers, where the method allows it
"""

from __future__ import annotations

# isort: off
from . import frozen_and_full, lora, adapter, coefficients, expanded  # noqa: F401 - each registers its methods, in METHODS' order

# isort: on
from .description import Description, describe
from .loading import load_model, load_trained
from .merging import merged
from .registry import METHODS, Method, build, method
from .saving import save_trained

__all__ = [
    "METHODS",
    "Description",
    "Method",
    "build",
    "describe",
    "load_model",
    "load_trained",
    "merged",
    "method",
    "save_trained",
]
