"""Weighted adapter: a new adapter as the sum of others, exact because changes of coefficients add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional as F

from .adapter_layer import AdapterLayer
from .config import SVDCoefficientConfig


def check_sum(
    model: nn.Module,
    configs: Mapping[str, SVDCoefficientConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
) -> None:
    """Refuse what has no sum.

    Raises:
        ValueError: The arguments do not fit each other or the model, or the sum is not one of coefficients.
    """
    if adapter_name in configs:
        raise ValueError(f"Adapter {adapter_name!r} already exists: delete it first or choose another name.")
    if not adapters:
        raise ValueError("adapters is empty: name at least one adapter to combine.")
    missing = sorted(set(adapters) - set(configs))
    if missing:
        raise ValueError(f"Adapter {', '.join(missing)} does not exist; there are {', '.join(sorted(configs))}.")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights={list(weights)} has to hold one finite number for each of {list(adapters)}.")
    if combination_type != "linear":
        raise ValueError(
            f"combination_type={combination_type!r} is not possible; 'linear' is, which for coefficients is exact."
        )
    for name in adapters:
        if configs[name].trainable != "coefficients":
            raise ValueError(
                f"Adapter {name!r} has trained bases (trainable={configs[name].trainable!r}), and a sum of weights "
                "with different bases has no coefficients. Make the adapters active together, or merge them."
            )
    for wrapper in _wrappers(model):
        holders = [name for name in dict.fromkeys(adapters) if name in wrapper.modules_to_save]
        if len(holders) > 1:
            raise ValueError(
                f"Cannot add weighted adapters if they target the same module with modules_to_save: "
                f"{', '.join(holders)} each have their own copy of it, and copies have no sum."
            )
    for layer in _layers(model):
        for name in layer.present(adapters):
            if name in layer.svd_coefficient_u and not torch.equal(
                layer.svd_coefficient_u[name], layer.bases.u[:, : layer.states[name].rank]
            ):
                raise ValueError(
                    f"Adapter {name!r} brought bases of its own (save_basis=True) to {layer.layer_name} that are not "
                    "those of this machine, so its coefficients cannot be added to others."
                )


def config_of_sum(
    model: nn.Module, configs: Mapping[str, SVDCoefficientConfig], adapters: Sequence[str]
) -> SVDCoefficientConfig:
    """Make the configuration of the sum: all targets of the adapters, with the largest rank in each layer."""
    targets: set[str] = set()
    for name in adapters:
        targets |= set(configs[name].target_modules or ())
    ranks = {
        layer.layer_name: max(layer.states[name].rank for name in layer.present(adapters))
        for layer in _layers(model)
        if layer.present(adapters)
    }
    full = {layer.layer_name: layer.bases.rank for layer in _layers(model)}
    saved = {module for name in adapters for module in configs[name].modules_to_save or ()}
    return replace(
        configs[adapters[0]],
        target_modules=targets,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        parametrization="absolute",
        rank=None,
        rank_pattern={name: rank for name, rank in ranks.items() if rank < full[name]},
        scaling=1.0,
        bias="none",
        modules_to_save=sorted(saved) or None,
        init_weights=True,
        save_basis=False,
        base_record=None,
    )


@torch.no_grad()
def fill_sum(model: nn.Module, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    """Give the injected sum its coefficients, `p0 + sum_i weight_i scaling_i (p_i - p0)`, and its modules_to_save."""
    for layer in _layers(model):
        if adapter_name not in layer.states:
            continue
        p = layer.svd_coefficient_p[adapter_name]
        for name, weight in zip(adapters, weights, strict=True):
            if name in layer.states:
                change = layer.coefficient_change(name) * (weight * layer.scaling[name])
                p.add_(F.pad(change, (0, len(p) - len(change))))
    for wrapper in _wrappers(model):
        for name in dict.fromkeys(adapters):
            if name in wrapper.modules_to_save and adapter_name in wrapper.modules_to_save:
                wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[name].state_dict())


def _layers(model: nn.Module) -> Iterable[AdapterLayer]:
    return (module for module in model.modules() if isinstance(module, AdapterLayer))


def _wrappers(model: nn.Module) -> Iterable[ModulesToSaveWrapper]:
    return (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))
