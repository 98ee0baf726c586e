"""A model that takes features where pixels went in: only its neck and what follows run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samparser.sam.families import Family, Features
from samparser.sam.wrapped import plain_model

_PROMPTS = ("input_boxes", "input_points", "input_labels")


class FromFeatures:
    """A hook before a model's forward that embeds features given as `pixel_values`.

    It runs inside the forward of whatever wraps the model, PEFT or `DistributedDataParallel`, and leaves names and
    weights of the model alone.

    With `prompt_rows`, int64 (P,), beside prompts (B, N, ...) that are filled up to one length, the mask decoder gets
    the P that are none of the filling in a row, where that is less work: masks are (P, 1, M, h, w) then.

    Args:
        family: The model's.
        shapes: Of the features of one image.
        dtype: What the features are converted to: that of the encoder in whose place they come.
    """

    def __init__(self, family: Family, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        self._family, self._shapes, self._dtype = family, tuple(shapes), dtype

    def __call__(
        self, model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the forward with embeddings in place of features.

        Raises:
            ValueError: `pixel_values` are an image, or features of another shape.
        """
        rest = dict(keywords)
        given = arguments[0] if arguments else rest.pop("pixel_values", None)
        if given is None:
            return arguments, rest
        rows = rest.pop("prompt_rows", None)
        embedded = self._family.embed(model, self._checked(given))
        if rows is not None:
            prompts = {name: rest[name] for name in _PROMPTS if rest.get(name) is not None}
            images, most = next(iter(prompts.values())).shape[:2]
            if self._family.cheaper_in_a_row(rows.numel(), images, most):
                rest |= {name: values.flatten(0, 1).index_select(0, rows)[:, None] for name, values in prompts.items()}
                image_of = rows.div(most, rounding_mode="floor")
                embedded = {name: _of_prompts(value, image_of) for name, value in embedded.items()}
        return (None, *arguments[1:]) if arguments else (), rest | embedded

    def _checked(self, given: Any) -> Features:
        features: tuple[Tensor, ...] = (given,) if isinstance(given, Tensor) else tuple(given)
        found = [tuple(tensor.shape) for tensor in features]
        if [shape[1:] for shape in found] != list(self._shapes):
            raise ValueError(
                f"This model's frozen image encoder is put away while it works from cached features of shape "
                f"{_shown([('batch', *shape) for shape in self._shapes])}; it got {_shown(found)}. Feed it what the "
                "cache's processor gives, or leave the cache's `feeding` block to use images again."
            )
        return tuple(tensor.to(self._dtype) for tensor in features)


@contextmanager
def taking_features(
    model: nn.Module, family: Family, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, *, after_neck: bool
) -> Iterator[None]:
    """Let a model take features as `pixel_values` inside the block.

    Args:
        model: A model of the family, or a wrapper around one.
        family: The model's.
        shapes: Of the features of one image.
        dtype: What the features are converted to.
        after_neck: The features are what the neck gives, in a family with an `embedding_shape`.
    """
    plain = plain_model(model)
    parent, _, child = family.neck_name.rpartition(".")
    neck = plain.get_submodule(family.neck_name)
    handle = plain.register_forward_pre_hook(FromFeatures(family, shapes, dtype), with_kwargs=True)
    if after_neck:
        setattr(plain.get_submodule(parent), child, nn.Identity())
    try:
        yield
    finally:
        setattr(plain.get_submodule(parent), child, neck)
        handle.remove()


def _of_prompts(values: Any, images: Tensor) -> Any:
    """Return a tensor (B, ...), or a list of such, with that of its image for each prompt: (P, ...)."""
    if not isinstance(values, Tensor):
        return [_of_prompts(tensor, images) for tensor in values]
    return values.index_select(0, images)


def _shown(shapes: Sequence[tuple[Any, ...]]) -> str:
    return " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes)
