"""SAM's mask decoder, computed in fewer and faster products: the same masks and weights, a shorter training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .absorbed_attention import absorbed_attention_class, is_plain_attention
from .upscaling import has_plain_upscaling, upscaling_classes


@contextmanager
def lean_decoder(model: nn.Module) -> Iterator[None]:
    """Inside the block the mask decoders within a model compute the same in less time.

    The upscaling runs as matrix products instead of transposed convolutions (`samparser.sam.upscaling`), and attention
    between tokens and image does without projecting the image (`samparser.sam.absorbed_attention`).

    Weights, their names and what is saved stay what they are; masks and gradients are equal up to rounding. What it
    saves is in ``docs/speed.md``. Parts of a decoder that are not as in SAM, or carry an adapter, are left alone.

    Modules change their class for the block, so let only one thread use the model at a time.
    """
    changed = []
    for module, lean in _lean_classes(model):
        changed.append((module, type(module)))
        module.__class__ = lean  # a class, not a method on the instance: replicas and copies keep it
    try:
        yield
    finally:
        for module, plain in changed:
            module.__class__ = plain


def _lean_classes(model: nn.Module) -> list[tuple[Any, type[nn.Module]]]:
    classes: list[tuple[Any, type[nn.Module]]] = []
    for module in model.modules():
        if has_plain_upscaling(module):
            classes.extend(upscaling_classes(module))
        elif is_plain_attention(module):
            classes.append((module, absorbed_attention_class()))
    return classes
