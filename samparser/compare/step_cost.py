"""What a training step of a row takes in time and memory, measured in a process of its own."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samparser.methods.registry import with_placeholders
from samparser.sam.changes import frozen_before_neck
from samparser.sam.families import family_of
from samparser.training import TrainSettings
from samparser.training.trainer import batch_loss, fused_adam, mask_logits, parameter_groups

from .counts import counted
from .experiment import Experiment, MethodRow
from .workspace import Workspace

# What the result file of a cost holds.
COST_FIELDS = (
    *("settings", "trained", "bytes", "macs", "step_seconds", "step_ratio", "rounds", "peak_bytes"),
    *("device", "threads"),
)
_ROUNDS = 5


def measure_cost(workspace: Workspace, row: MethodRow) -> dict[str, Any]:
    """Count and measure one row; call it in a fresh process, whose peak of memory is then the row's.

    A step is forward, loss, backward and Adam on one image of the model's full size with one box, without a cache,
    for rows that train nothing the forward alone. The row's steps and those of the experiment's reference alternate;
    the ratio is the median over the rounds.

    Returns:
        What `counted` gives, `step_seconds`, `step_ratio`, and `peak_bytes` above the model (None where the system does
        not tell).
    """
    experiment = workspace.experiment
    settings = experiment.train_settings(experiment.data[0], row)
    device = settings.device
    step = _step(_ready(workspace, row), settings, device)
    peak = _peak_of(step, device)
    reference = experiment.row(experiment.reference)
    other = step if row == reference else _step(_ready(workspace, reference), settings, device)
    step(), other()
    mine, theirs = [], []
    for _ in range(_ROUNDS):
        mine.append(_seconds(step, device))
        theirs.append(_seconds(other, device))
    return {
        "settings": cost_settings(workspace, row),
        **counted(row, getattr(workspace.base, "config", None)),
        "step_seconds": statistics.median(mine),
        "step_ratio": statistics.median(a / b for a, b in zip(mine, theirs, strict=True)),
        "rounds": _ROUNDS,
        "peak_bytes": peak,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _ready(workspace: Workspace, row: MethodRow) -> nn.Module:
    """Return the model of a row with as many numbers as it trains; the directions of an expansion cost all the same."""
    return with_placeholders(workspace.tuned(row))


def cost_settings(workspace: Workspace, row: MethodRow) -> dict[str, Any]:
    """Return what decides the cost of a row."""
    experiment: Experiment = workspace.experiment
    reference = experiment.row(experiment.reference)
    return {
        "model": workspace.model_settings(),
        "method": row.method,
        "options": dict(row.options),
        "reference": {"method": reference.method, "options": dict(reference.options)},
    }


def _step(model: nn.Module, settings: TrainSettings, device: torch.device) -> Callable[[], object]:
    model = model.to(device)
    size = family_of(model, "Measuring a step").frame(model).size
    generator = torch.Generator().manual_seed(0)
    corner, side = size / 4, size // 2
    masks = torch.zeros((1, 1, size, size), dtype=torch.bool)
    masks[..., size // 4 : size // 4 + side, size // 4 : size // 4 + side] = True
    batch = {
        "pixel_values": torch.randn((1, 3, size, size), generator=generator),
        "input_boxes": torch.tensor([[[corner, corner, corner + side, corner + side]]]),
        "masks": masks,
        "instance_valid": torch.ones((1, 1), dtype=torch.bool),
        "pixel_valid": torch.ones((1, size, size), dtype=torch.bool),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    groups = parameter_groups(model, settings)
    if not groups:
        model.eval()
        return torch.no_grad()(lambda: mask_logits(model, batch))
    optimizer = fused_adam(groups, settings)
    model.train()
    for part in frozen_before_neck(model):
        part.eval()

    def step() -> None:
        optimizer.zero_grad()
        batch_loss(mask_logits(model, batch), batch, settings).total.backward()
        optimizer.step()

    return step


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def _peak_of(run: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that two runs held above what was held before, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(), run()
        return torch.cuda.max_memory_allocated() - before
    try:
        # Linux: sets the peak of the process back to what it holds now.
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        run(), run()
        return max(0, _resident("VmHWM") - before)
    except OSError:
        return None


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    if match is None:
        raise OSError(f"/proc/self/status has no {field}.")
    return int(match[1]) * 1024
