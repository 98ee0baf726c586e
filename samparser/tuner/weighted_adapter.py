"""Weighted adapter: a new adapter as the sum of others, exact because changes of coefficients add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn import functional as F

from .changed_layer import ChangedLayer, no_terms_yet
from .config import SVDCoefficientConfig
from .expansion import Expansion


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
        if configs[name].trains_bases:
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
            if layer.states[name].awaits:
                raise ValueError(no_terms_yet(layer.layer_name, name))
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
    trainable = {configs[name].trainable for name in adapters}
    terms = {layer.layer_name: sum_of_terms(layer, adapters) for layer in _layers(model)}
    records = {name: expansion.record() for name, expansion in terms.items() if expansion.count}
    kinds = {configs[name].expansion for name in adapters} - {None}
    dtypes = {configs[name].expansion_dtype for name in adapters if configs[name].expansion}
    saved = {module for name in adapters for module in configs[name].modules_to_save or ()}
    return replace(
        configs[adapters[0]],
        target_modules=targets,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        trainable="coefficients" if "coefficients" in trainable else "expansion",
        parametrization="absolute",
        expansion=(kinds.pop() if len(kinds) == 1 else "mixed") if records else None,
        expansion_rank=None,
        expansion_dtype="float16" if records and dtypes == {"float16"} else "float32",
        expansion_record=records or None,
        top=None,
        rank=None,
        rank_pattern={name: rank for name, rank in ranks.items() if rank < full[name]},
        scaling=1.0,
        bias="none",
        modules_to_save=sorted(saved) or None,
        init_weights=True,
        save_basis=False,
        base_record=None,
    )


def sum_of_terms(layer: ChangedLayer, adapters: Sequence[str]) -> Expansion:
    """Put the terms of adapters behind each other, all pairs first, with a unit of 1."""
    found = [state.expansion for state in (layer.states.get(name) for name in adapters) if state and state.expansion]
    nothing = torch.zeros(0, dtype=torch.int64, device=layer.bases.u.device)
    rows = torch.cat([nothing, *(expansion.rows for expansion in found)])
    columns = torch.cat([nothing, *(expansion.columns for expansion in found)])
    return Expansion(1.0, rows, columns, sum(expansion.stored for expansion in found))


@torch.no_grad()
def fill_sum(model: nn.Module, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    """Give the injected sum its coefficients, `p0 + sum_i weight_i scaling_i (p_i - p0)`, and its modules_to_save."""
    for layer in _layers(model):
        if adapter_name not in layer.states:
            continue
        p = layer.svd_coefficient_p.get(adapter_name, None)
        for name, weight in zip(adapters, weights, strict=True):
            if name in layer.states and p is not None:
                change = layer.coefficient_change(name) * (weight * layer.scaling[name])
                p.add_(F.pad(change, (0, len(p) - len(change))))
        _fill_terms(layer, adapters, weights, adapter_name)
    for wrapper in _wrappers(model):
        for name in dict.fromkeys(adapters):
            if name in wrapper.modules_to_save and adapter_name in wrapper.modules_to_save:
                wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[name].state_dict())


def _fill_terms(layer: ChangedLayer, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
    """Copy the terms of the adapters of a layer into those of their sum, in the order of `sum_of_terms`."""
    if adapter_name not in layer.svd_coefficient_c:
        return
    pairs, others, a, b = [], [], [], []
    for name, weight in zip(adapters, weights, strict=True):
        expansion = layer.states[name].expansion if name in layer.states else None
        if expansion is None or not expansion.count:
            continue
        c = layer.svd_coefficient_c[name] * (weight * layer.scaling[name] * expansion.scale)
        pairs.append(c[: len(expansion.rows)])
        others.append(c[len(expansion.rows) :])
        if expansion.stored:
            a.append(layer.svd_coefficient_a[name])
            b.append(layer.svd_coefficient_b[name])
    layer.svd_coefficient_c[adapter_name].copy_(torch.cat([*pairs, *others]))
    if a:
        layer.svd_coefficient_a[adapter_name].copy_(torch.cat(a, 1))
        layer.svd_coefficient_b[adapter_name].copy_(torch.cat(b))


def _layers(model: nn.Module) -> Iterable[ChangedLayer]:
    return (module for module in model.modules() if isinstance(module, ChangedLayer))


def _wrappers(model: nn.Module) -> Iterable[ModulesToSaveWrapper]:
    return (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper))
