"""What an adapter has learnt: the coefficients of a model as parameters, and before and after as spectra."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .adapter_layer import COEFFICIENTS
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
    layers = {module.layer_name: module for module in model.modules() if isinstance(module, SVDCoefficientLayer)}
    found = {name: layer.spectrum(adapter_name) for name, layer in layers.items() if adapter_name in layer.states}
    if not found:
        known = sorted({name for layer in layers.values() for name in layer.states})
        raise ValueError(f"The model has no SVD coefficient adapter {adapter_name!r}; it has {known or 'none'}.")
    return {name: (p0.clone(), p.clone()) for name, (p0, p) in found.items()}
