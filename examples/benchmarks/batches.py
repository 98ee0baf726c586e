"""A step of several cached images against the same images one by one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from samparser.features.from_features import taking_features
from samparser.prompts import collate
from samparser.sam import family_of, lean_decoder
from samparser.training import TrainSettings
from samparser.training.trainer import batch_loss, mask_logits

from .measure import Run, alternate, cell, device, peak_bytes, table
from .models import Size, make_sam, make_samples
from .steps import MIB, coefficients_and_decoder

ONE_BY_ONE, TOGETHER, FILLED = "one by one", "together", "filled up"
UNEQUAL = (1, 6, 2, 3, 1, 9, 4, 2)
"""Instances of eight images: 3.5 each, and as unequal as in COCO."""


def measure_batches(size: Size, pixels: Sequence[int], rounds: int, batches: Sequence[int] = (1, 2, 4, 8)) -> str:
    """Time and memory of a step from features in memory for so many images, one instance each, and unequal numbers."""
    rows = []
    for side in pixels:
        small = replace(size, pixels=side, layers=1)
        model = coefficients_and_decoder(make_sam(small)).to(device()).train()
        for what, instances in (("1 box each", (1,) * max(batches)), ("unequal numbers", UNEQUAL)):
            # One image alone fills nothing up: it is the same step.
            for images in batches if what == "1 box each" else batches[1:]:
                rows.append([str(side), what, str(images), *_one(model, small, instances[:images], rounds)])
    return (
        "ViT-B's neck and decoder, features in memory, forward, loss at input size, backward, Adam; unequal numbers "
        f"are the first of {', '.join(map(str, UNEQUAL))}. Time over that of as many steps of one image each:\n\n"
        + table(["pixels", "instances", "images", TOGETHER, FILLED, "an image, one by one", "memory, together"], rows)
    )


def _one(model: nn.Module, size: Size, instances: Sequence[int], rounds: int) -> list[str]:
    plain: Any = model.get_base_model()  # type: ignore[operator]
    family = family_of(plain)
    shapes = family.feature_shapes(plain.config)
    items = [_item(size.pixels, count, shapes) for count in instances]
    step = _stepper(model)
    together, singles = _moved(collate(items)), [_moved(collate([item])) for item in items]
    filled = {name: value for name, value in together.items() if name != "prompt_rows"}
    runs: dict[str, Run] = {
        ONE_BY_ONE: lambda: [step(single) for single in singles],
        TOGETHER: lambda: step(together),
    }
    unequal = len(set(instances)) > 1
    if unequal:
        runs[FILLED] = lambda: step(filled)
    with taking_features(model, family, shapes, torch.float32, after_neck=False), lean_decoder(model):
        memory = peak_bytes(runs[TOGETHER])
        timings = alternate(runs, rounds, baseline=ONE_BY_ONE, warm=False)
    alone = timings[ONE_BY_ONE].seconds / len(items)
    return [
        cell(timings[TOGETHER]),
        cell(timings[FILLED]) if unequal else "",
        f"{alone:.3g} s",
        f"{memory / MIB:.0f} MiB",
    ]


def _item(pixels: int, instances: int, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """What a data set on a cache gives for an image, with random features."""
    (sample,) = make_samples(1, pixels, instances)
    return {
        "pixel_values": tuple(torch.randn(*shape) for shape in shapes),
        "input_boxes": torch.from_numpy(sample.boxes).float(),
        "masks": torch.from_numpy(sample.masks),
        "pixel_valid": torch.ones(pixels, pixels, dtype=torch.bool),
        "name": sample.name,
    }


def _moved(batch: dict[str, Any]) -> dict[str, Any]:
    there = device()
    moved = {name: value.to(there) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return moved | {"pixel_values": tuple(tensor.to(there) for tensor in batch["pixel_values"])}


def _stepper(model: nn.Module) -> Any:
    """A function that takes one whole optimizer step on a batch, as the trainer does."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    settings = TrainSettings()

    def step(batch: dict[str, Any]) -> None:
        loss = batch_loss(mask_logits(model, batch), batch, settings).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
