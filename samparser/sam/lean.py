"""The mask decoders of all families in fewer, faster products: the same masks and weights, a shorter training step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .absorbed_attention import absorbed_attention_class, is_plain_attention
from .switched_class import plain_class, switched
from .upscaling import has_plain_upscaling, upscaling_classes


@contextmanager
def lean_decoder(model: nn.Module) -> Iterator[None]:
    """Let the mask decoders within a model compute the same in less time, inside the block.

    The upscaling runs as matrix products instead of transposed convolutions (`samparser.sam.upscaling`), and attention
    between tokens and image does without projecting the image (`samparser.sam.absorbed_attention`).

    Weights, their names and what is saved stay what they are; masks and gradients are equal up to rounding. What it
    saves is in `docs/speed.md`. Parts of a decoder that are not as in transformers, carry an adapter, have hooks inside
    or are offloaded by accelerate are left alone.

    The lean way is this thread's alone: other threads may use the model meanwhile, and get the masks of the plain
    decoder. So do threads that are started inside the block, such as those of `nn.DataParallel`.
    """
    with switched(_lean_classes(model)):
        yield


def _lean_classes(model: nn.Module) -> list[tuple[Any, type[nn.Module]]]:
    """Return the modules to change, each with its class. A part is changed as a whole or not at all."""
    classes: list[tuple[Any, type[nn.Module]]] = []
    for module in model.modules():
        if has_plain_upscaling(module):
            parts = upscaling_classes(module)
            if _may_change(module, (part for part, _ in parts)):
                classes.extend(parts)
        elif is_plain_attention(module) and _may_change(module, module.modules()):
            classes.append((module, absorbed_attention_class(plain_class(module))))
    return classes


def _may_change(whole: nn.Module, parts: Iterable[nn.Module]) -> bool:
    """Return whether only their own classes are at work in the parts; hooks on the whole see what they always see.

    Hooks on a part would miss projections that are absorbed and see blocks out of order; accelerate, which loads
    offloaded weights in this way, even replaces an instance's `forward`.
    """
    return all("forward" not in vars(part) and (part is whole or not _has_hooks(part)) for part in parts)


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
