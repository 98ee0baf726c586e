"""Eval mode without gradients for a while, and what enters the neck meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Threads may evaluate one model at the same time: a module gets its own mode back when the last one is done.
_lock = threading.Lock()
_evaluated: dict[int, tuple[bool, int]] = {}  # by id of a module: whether it was in training mode, blocks that are open


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients inside the block, and give each module its own mode back."""
    modules = list(model.modules())
    with _lock:
        for module in modules:
            training, blocks = _evaluated.get(id(module), (module.training, 0))
            _evaluated[id(module)] = (training, blocks + 1)
        model.eval()
    try:
        # Not inference_mode: what a layer keeps from here may meet autograd later.
        with torch.no_grad():
            yield
    finally:
        with _lock:
            for module in modules:
                training, blocks = _evaluated.pop(id(module))
                if blocks > 1:
                    _evaluated[id(module)] = (training, blocks - 1)
                else:
                    module.training = training


class _NeckReachedError(Exception):
    """Ends a forward before a neck; `entering` is what would have entered it."""

    def __init__(self, entering: Any) -> None:
        super().__init__("The forward has reached the neck.")
        self.entering = entering


def neck_input(neck: nn.Module, forward: Callable[[], object]) -> Any:
    """Return what enters a neck in a forward of this thread, which ends there: the neck itself does not run.

    Raises:
        RuntimeError: The forward ended without a call of the neck.
    """
    thread = threading.get_ident()

    def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:  # a hook sees the forwards of every thread
            raise _NeckReachedError(arguments[0])

    handle = neck.register_forward_pre_hook(stop)
    try:
        forward()
    except _NeckReachedError as reached:
        return reached.entering
    finally:
        handle.remove()
    raise RuntimeError(f"The image encoder did not call its neck, a {type(neck).__name__}.")
