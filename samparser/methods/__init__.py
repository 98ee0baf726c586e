"""Every way to tune a SAM that is compared here, behind one call.

model = build("samparser", model)         # or "lora", "adapter", "decoder", "full", ...: see METHODS
save_trained(model, "out")                # what was trained, nothing of the base
model = load_trained(base_model, "out")
plain = merged(model)                     # a plain SamModel, where the method allows it
"""

from __future__ import annotations

from . import adapter, coefficients, lora
from . import frozen_and_full as plain  # noqa: F401 - each registers its methods, in METHODS' order
from .description import Description, describe
from .loading import load_model
from .merging import merged
from .registry import METHODS, Method, build, method
from .saving import load_trained, save_trained

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
