"""Models with expansions: adapters that got their terms by a pass over batches and were moved."""

import torch
from peft import get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig, initialize_expansion
from tests.tuner.models import TARGETS, batch, make, move
from tests.tuner.strategies import adapted, input_for

KINDS = ("pairs", "gradient", "random")


def batches(kind: str, count: int = 4, first: int = 10) -> list:
    """Batches as functions of the model, for a model of this kind."""
    return [lambda model, seed=first + i: model(batch(kind, seed)).square().mean() for i in range(count)]


def waiting(kind: str = "MLP", **choices) -> nn.Module:
    """A model whose adapter has not got its terms."""
    choices = {"expansion": "pairs", "expansion_rank": 3, **choices}
    return get_peft_model(make(kind), SVDCoefficientConfig(target_modules=TARGETS[kind], **choices))


def expanded(kind: str, *names: str, targets=None, **choices) -> nn.Module:
    """A model with adapters that have an expansion each, chosen on different batches and moved; the first is active."""
    names = names or ("default",)
    choices = {"expansion": "pairs", "expansion_rank": 2, **choices}
    targets = targets or TARGETS[kind]
    model = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=targets, **choices), names[0])
    for name in names[1:]:
        model.add_adapter(name, SVDCoefficientConfig(target_modules=targets, **choices))
    for seed, name in enumerate(names):
        initialize(model, kind, name, first=10 * (seed + 1), seed=seed)
    model.set_adapter(names[0])
    return model


def initialize(model: nn.Module, kind: str, name: str = "default", *, first: int = 10, seed: int = 0) -> None:
    """Choose an adapter's directions on four batches and move all that it trains."""
    model.set_adapter(name)
    initialize_expansion(model, batches(kind, first=first), adapter_name=name, seed=seed, show=False)
    stir(model, name, seed=seed)


def stir(model: nn.Module, name: str = "default", *, seed: int = 0, by: float = 0.3) -> None:
    """Move an adapter, its terms by numbers of the size of coefficients: they start at zero."""
    move(model, name, seed=seed, by=by)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith(f"svd_coefficient_c.{name}"):
            parameter.data += by * torch.randn(parameter.shape, generator=generator).to(parameter)


def wrap_expanded(layer: nn.Module, *names: str, **choices) -> nn.Module:
    """A model of one layer with expanded adapters, each moved."""
    names = names or ("default",)
    config = {"target_modules": ["layer"], **choices}
    model = get_peft_model(nn.ModuleDict({"layer": layer}), SVDCoefficientConfig(**config), names[0])
    for name in names[1:]:
        model.add_adapter(name, SVDCoefficientConfig(**config))
    for seed, name in enumerate(names):
        model.set_adapter(name)
        torch.manual_seed(seed)
        inputs = [input_for(layer) for _ in range(4)]
        passes = [lambda model, x=x: adapted(model)(x).float().square().mean() for x in inputs]
        initialize_expansion(model, passes, adapter_name=name, seed=seed, show=False)
        stir(model, name, seed=seed)
    model.set_adapter(names[0])
    return model
