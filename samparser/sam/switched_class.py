"""Another class for a module, for one thread and a while; other threads see the module as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# A module's class is shared by all threads, so it changes when the first thread asks and changes back when the last one
# is done. Whether a call takes the new way is each thread's own: it is settled before any class changes back, and a
# thread that never asked goes the plain way at any moment.
_lock = threading.Lock()
_switched: dict[int, tuple[nn.Module, type[nn.Module], int]] = {}  # by id: module, class it had, blocks that are open
_here = threading.local()


@contextmanager
def switched(classes: Iterable[tuple[nn.Module, type[nn.Module]]]) -> Iterator[None]:
    """Give modules another class inside the block; blocks may be nested, and overlap in several threads.

    A new class names the one it stands for as `plain_class`. Its methods ask `is_switched_here` first, and where that
    is false call the plain class' by name: `super()` fails where another thread changes the class back meanwhile.
    """
    chosen = list(classes)
    with _lock:
        for module, new in chosen:
            _, plain, blocks = _switched.get(id(module), (module, type(module), 0))
            _switched[id(module)] = (module, plain, blocks + 1)
            module.__class__ = new  # a class, not a method on the instance: replicas and copies keep it
    _count_here(chosen, 1)
    try:
        yield
    finally:
        _count_here(chosen, -1)
        with _lock:
            for module, _ in chosen:
                _, plain, blocks = _switched.pop(id(module))
                if blocks > 1:
                    _switched[id(module)] = (module, plain, blocks - 1)
                else:
                    module.__class__ = plain


def is_switched_here(module: nn.Module) -> bool:
    """Return whether this thread is inside a block that gave this module, not the one it is a copy of, its class."""
    return id(module) in getattr(_here, "blocks", ())


def plain_class(module: Any) -> Any:
    """Return the class that a module has outside of every block."""
    return getattr(type(module), "plain_class", type(module))


def full_name(some_class: type[Any]) -> str:
    """Return the name of a class with that of its module: what tells transformers' classes without importing them."""
    return f"{some_class.__module__}.{some_class.__qualname__}"


def _count_here(classes: list[tuple[nn.Module, type[nn.Module]]], step: int) -> None:
    blocks: dict[int, int] = getattr(_here, "blocks", {})
    for module, _ in classes:
        blocks[id(module)] = blocks.get(id(module), 0) + step
        if blocks[id(module)] == 0:
            del blocks[id(module)]
    _here.blocks = blocks
