"""An attribute of modules that has another value for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Threads may hold the same attribute at the same time: it gets its own value back when the last one is done.
_lock = threading.Lock()
_held: dict[tuple[int, str], tuple[Any, int]] = {}  # by module and name: the module's own value, blocks that are open


@contextmanager
def held(modules: Iterable[nn.Module], name: str, value: Any) -> Iterator[None]:
    """Give an attribute of modules a value inside the block, for every thread, and each its own value back after it."""
    modules = list(modules)
    with _lock:
        for module in modules:
            own, blocks = _held.get((id(module), name), (getattr(module, name), 0))
            _held[id(module), name] = (own, blocks + 1)
            setattr(module, name, value)
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                own, blocks = _held.pop((id(module), name))
                if blocks > 1:
                    _held[id(module), name] = (own, blocks - 1)
                else:
                    setattr(module, name, own)
