"""Running a model in eval mode without gradients, and leaving every module in the mode it had."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # Not inference_mode: what a layer keeps from here may meet autograd later.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
