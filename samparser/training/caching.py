"""Training from cached features: fill the cache, put the frozen encoder aside, give it back afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import ConcatDataset

from samparser.data.flips import Flipped
from samparser.features.cache import FeatureCache
from samparser.features.precision import DTYPES
from samparser.sam.families import family_of
from samparser.sam.wrapped import plain_model
from samparser.tuner import SVDCoefficientLayer

from .settings import TrainSettings

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def open_cache(model: nn.Module, processor: Any, settings: TrainSettings) -> FeatureCache | None:
    """Return the cache that the settings ask for, empty or not; None where they ask for none.

    Raises:
        ValueError: Something before the neck is trained, or `cache_projected` does not fit the model.
    """
    if settings.cache is None:
        return None
    projection = _first_layer(model).projection() if settings.cache_projected else None
    return FeatureCache(
        settings.cache,
        model,
        processor,
        dtype=DTYPES[settings.cache_dtype],
        projection=projection,
        limit_gb=settings.cache_limit_gb,
        batch=settings.cache_batch,
        autocast=None if settings.cache_autocast is None else _AUTOCAST[settings.cache_autocast],
        shards=settings.cache_shards,
    )


def images_of(train_set: Any, eval_set: Any, settings: TrainSettings, also: Any = None) -> ConcatDataset[Any]:
    """Return every image that a run needs features of: to train on, mirrored too where flips are on, and to score."""
    sets: list[Sequence[Any]] = [train_set, *([Flipped(train_set)] if settings.flip else [])]
    scored = [dataset for dataset in (eval_set, also) if dataset is not None]
    return ConcatDataset([*sets, *scored])  # type: ignore[list-item]


@contextmanager
def fed_from(
    cache: FeatureCache | None, model: nn.Module, processor: Any, images: Any, arguments: TrainSettings
) -> Iterator[Any]:
    """Yield the processor to train with: the model's own, or that of the cache once it is full.

    Every process encodes its share of what is missing, on its own device. Inside the block the frozen encoder is not
    in memory.
    """
    if cache is None:
        yield processor
        return
    model.to(arguments.device)
    rank, world = arguments.process_index, arguments.world_size
    cache.fill(
        images,
        process=(rank, world),
        workers=arguments.dataloader_num_workers,
        context=arguments.dataloader_multiprocessing_context,
        progress=not arguments.disable_tqdm,
    )
    PartialState().wait_for_everyone()
    projected = [_first_layer(model)] if cache.form == "projection" else []
    with cache.feeding() as fed:
        for layer in projected:
            layer.takes_projection = True
        try:
            yield fed
        finally:
            for layer in projected:
                layer.takes_projection = False


def _first_layer(model: nn.Module) -> SVDCoefficientLayer:
    family = family_of(model, "cache_projected")
    if family.pointwise_first is None:
        raise ValueError(
            "cache_projected keeps what comes after the frozen basis of the neck's first layer, but the neck of a "
            f"{family.model_class} does not begin with one 1x1 convolution. Leave cache_projected out."
        )
    layer = plain_model(model).get_submodule(family.pointwise_first)
    if not isinstance(layer, SVDCoefficientLayer):
        name = family.pointwise_first.rpartition(".")[2]
        raise ValueError(
            f"cache_projected keeps what comes after the frozen basis of the neck's {name}, but {name} of this model "
            f"is a {type(layer).__name__} without coefficients. Leave cache_projected out."
        )
    if any(state.wanted or state.expansion for state in layer.states.values()):
        raise ValueError(
            "cache_projected keeps what comes after the frozen basis of the neck's first layer, but directions of an "
            "expansion are chosen by what comes before. Leave cache_projected out."
        )
    return layer
