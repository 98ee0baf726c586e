"""Eval mode without gradients for a while, and every module's own mode afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients inside the block, and give each module its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: what a layer keeps from here may meet autograd later.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
