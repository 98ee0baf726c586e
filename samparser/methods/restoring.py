"""Gives a model back as it was when changing it fails."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """Put back a model's modules, their attributes, and which parameters train, if the block fails.

    Methods put modules into the places of others and leave marks on the model. Values of weights are not kept: nothing
    may write into them before everything that can be refused has been.
    """
    attributes = {
        module: {name: copy.copy(value) if isinstance(value, dict | list | set) else value for name, value in found}
        for module in model.modules()
        if (found := list(vars(module).items()))
    }
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, before in attributes.items():
            vars(module).clear()
            vars(module).update(before)
        for parameter, trained in trains:
            parameter.requires_grad_(trained)
        raise
