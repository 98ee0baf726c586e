"""For a training loop: coefficients and terms as parameters and as values, and warnings of what goes wrong quietly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .adapter_layer import COEFFICIENTS
from .expansion import DEFAULT_COUNT, Expansion, most_terms
from .layer import SVDCoefficientLayer


def coefficient_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of all coefficients in a model, of every adapter, trained or frozen.

    Coefficients want a learning rate of their own, about a thousand times that of weights:

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig
        >>> from samparser.tuner import coefficient_parameters
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> model = get_peft_model(net, SVDCoefficientConfig(target_modules=["0"], modules_to_save=["1"]))
        >>> chosen = dict(coefficient_parameters(model))
        >>> sorted(chosen)
        ['base_model.model.0.svd_coefficient_p.default']
        >>> others = [p for name, p in model.named_parameters() if p.requires_grad and name not in chosen]
        >>> groups = [{"params": list(chosen.values()), "lr": 1e-2}, {"params": others, "lr": 1e-4}]
        >>> optimizer = torch.optim.Adam(groups)
    """
    for name, module in model.named_modules():
        if isinstance(module, SVDCoefficientLayer):
            for kind in COEFFICIENTS:
                for adapter, parameter in getattr(module, kind).items():
                    yield ".".join(part for part in (name, kind, adapter) if part), parameter


@torch.no_grad()
def coefficients(model: nn.Module, adapter_name: str = "default") -> dict[str, tuple[Tensor, Tensor]]:
    """Read the spectra of an adapter: for each adapted layer the coefficients before and after, (p0, p), each (rank,).

    p0 are the singular values of the base weight and p those that the adapter puts in their place, at scaling 1 and
    however they are parametrised. Copies, in float32 or wider.

    Raises:
        ValueError: No layer of the model has an adapter of that name.
    """
    found = {name: layer.spectrum(adapter_name) for name, layer in _layers_with(model, adapter_name).items()}
    return {name: (p0.clone(), p.clone()) for name, (p0, p) in found.items()}


def _layers_with(model: nn.Module, adapter_name: str) -> dict[str, SVDCoefficientLayer]:
    layers = {module.layer_name: module for module in model.modules() if isinstance(module, SVDCoefficientLayer)}
    found = {name: layer for name, layer in layers.items() if adapter_name in layer.states}
    if not found:
        known = sorted({name for layer in layers.values() for name in layer.states})
        raise ValueError(f"The model has no SVD coefficient adapter {adapter_name!r}; it has {known or 'none'}.")
    return found


class Terms(NamedTuple):
    """The terms of an expansion in one layer: the change of the weight is `(left * change) @ right`, (out, fan_in).

    Args:
        change: (n,), the numbers c of the terms times their unit s.
        left: (out, n), the directions a.
        right: (n, fan_in), the directions b.
        pairs: (m, 2), the indices (i, j) of the first m terms, which pair the bases `u_i v_j^T` of the weight; the
            others have directions of their own.
        share: The shares of the gradient's signal that `initialize_expansion` measured, of the "coefficients" and of
            "all" numbers; None where nobody measured, as in a sum of adapters.
    """

    change: Tensor
    left: Tensor
    right: Tensor
    pairs: Tensor
    share: dict[str, float | None] | None


@torch.no_grad()
def expansion_terms(model: nn.Module, adapter_name: str = "default") -> dict[str, Terms]:
    """Read the terms of an adapter's expansion, for each layer that has some; at scaling 1, copies.

    Raises:
        ValueError: No layer of the model has an adapter of that name.
    """
    found = {}
    for name, layer in _layers_with(model, adapter_name).items():
        expansion = layer.states[adapter_name].expansion
        if expansion is not None and expansion.count:
            left, change, right = layer.terms_of_expansion(adapter_name)
            pairs = torch.stack([expansion.rows, expansion.columns], 1)
            found[name] = Terms(change.clone(), left.clone(), right.clone(), pairs, expansion.share)
    return found


def awaited_terms(model: nn.Module, adapter_name: str = "default") -> dict[str, int]:
    """Find the layers whose adapter has yet to get its terms from `initialize_expansion`, and how many each is to get.

    Empty where the adapter has its terms, or no expansion. Layers that get by themselves what they allow are counted
    with the number that is usual for the kind.
    """
    waiting = {}
    for layer in model.modules():
        if isinstance(layer, SVDCoefficientLayer) and adapter_name in layer.states:
            state = layer.states[adapter_name]
            if state.awaits and state.wanted is not None:
                kind = state.wanted.kind
                usual = min(DEFAULT_COUNT[kind], most_terms(kind, layer.bases.rank))
                waiting[layer.layer_name] = usual if state.wanted.count is None else state.wanted.count
    return waiting


def placeholder_terms(model: nn.Module, adapter_name: str = "default") -> None:
    """Give every layer that waits for terms as many along arbitrary directions: to count and time what they cost."""
    waiting = awaited_terms(model, adapter_name)
    for layer in model.modules():
        if not isinstance(layer, SVDCoefficientLayer) or layer.layer_name not in waiting:
            continue
        wanted, count = layer.states[adapter_name].wanted, waiting[layer.layer_name]
        assert wanted is not None
        paired, rank = wanted.kind == "pairs", layer.bases.rank
        number = torch.arange(count if paired else 0)
        expansion = Expansion(1.0, number % rank, (number + 1 + number // rank) % rank, 0 if paired else count)
        layer.set_expansion(adapter_name, expansion, wanted.dtype)
        layer.svd_coefficient_c[adapter_name].requires_grad_(adapter_name in layer.active_adapters)


def take_pairs(model: nn.Module, pairs: Mapping[str, Sequence[Sequence[int]]], adapter_name: str = "default") -> None:
    """Put other pairs of bases in the place of those that were chosen; the numbers of the terms stay.

    For a run that goes on, and for processes that train together: where two pairs see as good as equally much of the
    gradient, rounding decides between them, and numbers that were trained for one are wrong for the other.

    Args:
        model: A model with the adapter, which has its terms.
        pairs: The pairs (i, j) of each layer that has terms, as `expansion_terms` gives them.
        adapter_name: The adapter.

    Raises:
        ValueError: The layers or the numbers of pairs are others, or an index is that of no base. Nothing has changed.
    """
    expanded = {
        name: layer
        for name, layer in _layers_with(model, adapter_name).items()
        if (expansion := layer.states[adapter_name].expansion) is not None and expansion.count
    }
    if pairs.keys() != expanded.keys():
        raise ValueError(
            f"The pairs are those of {_shown([*pairs]) or 'no layer'}, but the terms are in {_shown([*expanded])}."
        )
    taken = {}
    for name, layer in expanded.items():
        expansion = layer.states[adapter_name].expansion
        assert expansion is not None
        indices = torch.tensor(pairs[name], dtype=torch.int64, device=layer.bases.u.device).reshape(-1, 2)
        if len(indices) != len(expansion.rows):
            raise ValueError(f"{name} has {len(expansion.rows)} pairs of bases, and {len(indices)} are given.")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < layer.bases.rank:
            raise ValueError(f"{name} has {layer.bases.rank} bases, counted from 0, but the pairs name others.")
        taken[name] = replace(expansion, rows=indices[:, 0].contiguous(), columns=indices[:, 1].contiguous())
    for name, layer in expanded.items():
        layer.states[adapter_name].expansion = taken[name]


# Coefficients that get no gradient, frozen layers that change all the same


@torch.no_grad()
def unused_coefficients(model: nn.Module) -> list[str]:
    """Name the adapted layers whose trained numbers got no gradient in the last backward pass.

    Nothing that such a layer computes reaches the loss, so that its coefficients never move. Call it between
    `loss.backward()` and `optimizer.zero_grad()`.

    Args:
        model: A model with adapters of this method, after a backward pass.

    Returns:
        The names of the layers, sorted. One counts that trains, and whose gradients are all missing or zero.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig
        >>> from samparser.tuner import unused_coefficients
        >>> net = torch.nn.ModuleDict({"used": torch.nn.Linear(4, 2), "idle": torch.nn.Linear(4, 2)})
        >>> model = get_peft_model(net, SVDCoefficientConfig(target_modules=["used", "idle"]))
        >>> net["used"](torch.ones(1, 4)).sum().backward()
        >>> unused_coefficients(model)
        ['idle']
    """
    layers = (module for module in model.modules() if isinstance(module, SVDCoefficientLayer))
    return sorted(layer.layer_name for layer in layers if _trains_in_vain(layer))


def _trains_in_vain(layer: SVDCoefficientLayer) -> bool:
    trained = [parameter for _, _, parameter in layer.parameters_of_adapters() if parameter.requires_grad]
    return bool(trained) and not any(p.grad is not None and bool(p.grad.any()) for p in trained)


def warn_of_unused_coefficients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Warn at the optimizer's first step, and then never again, of layers that `unused_coefficients` names.

    For a loop of your own; training with `samparser.training` does it by itself. Where some coefficients get no
    gradient, `DistributedDataParallel` needs `find_unused_parameters=True`.

    Args:
        model: A model with adapters of this method.
        optimizer: The optimizer that trains it.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from samparser import SVDCoefficientConfig
        >>> from samparser.tuner import warn_of_unused_coefficients
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 2)), SVDCoefficientConfig(target_modules="0"))
        >>> optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
        >>> warn_of_unused_coefficients(model, optimizer)
    """

    def look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        handle.remove()
        unused = unused_coefficients(model)
        if unused:
            warnings.warn(
                f"The coefficients of {_shown(unused)} got no gradient in the first step: nothing that these layers "
                "compute reaches the loss, so that they will never train. Take them out of target_modules, or look "
                "whether the loss leaves out something that it should see.",
                stacklevel=2,
            )

    handle = optimizer.register_step_pre_hook(look)


def warn_of_running_statistics(model: nn.Module) -> None:
    """Warn of frozen layers in training mode whose running statistics every forward pass changes.

    An adapter does not save them, so that a base model that is loaded anew has others.
    """
    drifting = list(_drifting(model))
    if drifting:
        warnings.warn(
            f"Frozen layers with running statistics are in training mode: {_shown(drifting)}. Every forward pass "
            "changes the base model there. An adapter saves nothing of that, so that a reloaded one gives other "
            "outputs, and without the adapter the model is no longer the base model. After model.train(), put these "
            "layers back into eval mode (`module.eval()` on the part that contains them), or name that part in "
            "modules_to_save.",
            stacklevel=2,
        )


def _drifting(module: nn.Module, name: str = "") -> Iterator[str]:
    if isinstance(module, AuxiliaryTrainingWrapper):  # Trained in full, and saved with the adapter.
        return
    statistics = getattr(module, "running_mean", None) if getattr(module, "track_running_stats", False) else None
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    # Where momentum is None the statistics are means over all passes.
    if statistics is not None and module.training and frozen and getattr(module, "momentum", None) != 0:
        yield name
    for child, below in module.named_children():
        yield from _drifting(below, f"{name}.{child}" if name else child)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
