"""The state of a training on disk: weights, their average and the optimizers' moments, in one safetensors file."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def save_state(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Write the state, whole or not at all."""
    tensors = {f"model.{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    for name, value in parameters.items():
        # a parameter that no prompt has used yet has no moments
        for optimizer in optimizers:
            tensors |= {f"{key}.{name}": moment for key, moment in optimizer.state.get(value, {}).items()}
    unfinished = path.with_suffix(".part")
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, unfinished, {"steps": str(step)})
    os.replace(unfinished, path)


@torch.no_grad()
def load_state(
    path: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
) -> int:
    """Put a saved state back in place; the number of steps that it has behind it."""
    tensors = load_file(path)
    owners = {id(value): each for each in optimizers for group in each.param_groups for value in group["params"]}
    for name, value in parameters.items():
        value.copy_(tensors[f"model.{name}"])
        average[name].copy_(tensors[f"average.{name}"])
        # AdamW counts its steps on the CPU, whatever the device
        moments = {
            key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else value.device)
            for key in MOMENTS
            if f"{key}.{name}" in tensors
        }
        if moments:
            owners[id(value)].state[value] = moments
    return steps_done(path)


def steps_done(path: Path) -> int:
    """The number of steps behind a saved state, without reading its tensors."""
    with safe_open(path, "pt") as file:
        return int(file.metadata()["steps"])
