"""A whole training step of a SAM: each method against training the decoder alone, and from cached features."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig
from samparser.features import FeatureCache
from samparser.methods import build
from samparser.sam import default_processor, neck_targets

from .layers import ThreeLayers
from .measure import Run, alternate, cell, peak_bytes, table
from .models import Size, make_batch, make_sam, make_samples, training_step

MIB = 2**20


def coefficients_and_decoder(model: nn.Module, **fields: Any) -> nn.Module:
    """The method of the paper: coefficients of the neck, and the mask decoder."""
    config = SVDCoefficientConfig(target_modules=neck_targets(model), modules_to_save=["mask_decoder"], **fields)
    return get_peft_model(model, config)


def _three_layers(model: Any) -> nn.Module:
    model = build("decoder", model)
    neck = model.vision_encoder.neck
    neck.conv1, neck.conv2 = ThreeLayers(neck.conv1), ThreeLayers(neck.conv2)
    return model


METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "decoder only": lambda model: build("decoder", model),
    "samparser + decoder": coefficients_and_decoder,
    "the same, weights rebuilt in each step": lambda model: coefficients_and_decoder(model, form="rebuilt"),
    "SVF's three layers + decoder": _three_layers,
    "LoRA r=4 on qkv + decoder": lambda model: build("lora-qkv", model),
}
BASELINE, OURS, LORA = "decoder only", "samparser + decoder", "LoRA r=4 on qkv + decoder"
MAIN = (BASELINE, OURS, LORA)
CACHED, PROJECTED = "samparser + decoder, cached tokens", "samparser + decoder, cached projection"


def measure_steps(size: Size, rounds: int, *, main_methods: bool, instances: int = 1) -> str:
    """Time and memory of a step with one image, of all methods or of the main ones only."""
    processor = default_processor(make_sam(size))
    (sample,) = make_samples(1, size.pixels, instances)
    pixel_values = processor(sample.image, return_tensors="pt")["pixel_values"]
    batch = make_batch(sample)
    runs: dict[str, Run] = {}
    for name in MAIN if main_methods else METHODS:
        method = METHODS[name]
        runs[name] = training_step(method(make_sam(size)).train(), pixel_values, batch)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in (CACHED, PROJECTED):
            model = coefficients_and_decoder(make_sam(size)).train()
            runs[name] = cached_step(stack, model, processor, sample, folder, projected=name == PROJECTED)
        memory = {name: peak_bytes(run) for name, run in runs.items()}
        timings = alternate(runs, rounds, baseline=BASELINE, warm=False)
        by_lora = alternate({name: runs[name] for name in (CACHED, PROJECTED)}, 5 * rounds, baseline=CACHED)
    rows = []
    for name, timing in timings.items():
        rows.append([name, cell(timing), f"{timing.seconds:.3g} s", f"{memory[name] / MIB:.0f} MiB"])
    times = {name: timing.seconds for name, timing in timings.items()} | {n: t.seconds for n, t in by_lora.items()}
    lines = [
        f"{size.name}, one image, {instances} box(es), forward, loss at input size, backward, Adam; memory is the peak "
        "of tensors above model and optimizer:",
        table(["method", "time / decoder only", "time", "peak memory"], rows),
        f"- samparser over decoder only: time {timings[OURS].ratio:.2f}, memory "
        f"{memory[OURS] / memory[BASELINE]:.2f} (goal 1.05); LoRA: time {timings[LORA].ratio:.2f}, memory "
        f"{memory[LORA] / memory[BASELINE]:.2f}.",
    ]
    for name in (CACHED, PROJECTED):
        lines.append(
            f"- {name}: 1/{times[OURS] / times[name]:.1f} of the same step uncached (goal 1/40 for ViT-B at 1024), "
            f"1/{times[LORA] / times[name]:.1f} of LoRA's (goal 1/100), reading included; peak "
            f"{memory[name] / MIB:.0f} MiB (goal 150)."
        )
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:])


def cached_step(
    stack: ExitStack,
    model: nn.Module,
    processor: Any,
    sample: Any,
    folder: str,
    *,
    projected: bool = False,
    small_loss: bool = False,
) -> Run:
    """A step that reads its features from a cache; the encoder is out of memory until the stack is closed."""
    base: Any = model.get_base_model()  # type: ignore[operator]
    conv1 = base.vision_encoder.neck.conv1
    cache = FeatureCache(folder, model, processor, projection=conv1.projection() if projected else None)
    cache.fill([sample], progress=False)
    fed = stack.enter_context(cache.feeding())
    conv1.takes_projection = projected
    optimizer_step = training_step(model, torch.empty(0), make_batch(sample), small_loss=small_loss)
    return lambda: optimizer_step(fed(sample.image)["pixel_values"])
