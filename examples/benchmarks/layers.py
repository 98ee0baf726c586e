"""One layer: each form against the frozen plain layer, PEFT's LoRA and the three layers of SVF."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from samparser import SVDCoefficientConfig
from samparser.tuner.factors import factorize, fold

from .measure import Run, alternate, cell, device, repeats, table

Makers = dict[str, tuple[Callable[[], nn.Module], int]]
GOALS = {"conv1": "1.75", "conv2": "1.30", "linear 3072": "1.55", "linear 768": "2.40"}
BATCH_GOALS = {"conv1": "1.60", "conv2": "1.25"}


class ThreeLayers(nn.Module):
    """V, p and U one after another (SVF, https://arxiv.org/abs/2206.06122), for a convolution or a linear layer."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        u, p, vh = factorize(fold(base.weight))
        self.p = nn.Parameter(p)
        if isinstance(base, nn.Conv2d):
            self.first: nn.Module = nn.Conv2d(
                base.in_channels, len(p), base.kernel_size, padding=base.padding, bias=False
            )
            self.last: nn.Module = nn.Conv2d(len(p), base.out_channels, 1, bias=False)
            weights = (vh.view(len(p), *base.weight.shape[1:]), u[:, :, None, None])
        else:
            self.first = nn.Linear(base.in_features, len(p), bias=False)
            self.last = nn.Linear(len(p), base.out_features)
            weights = (vh, u)
        for layer, weight in zip((self.first, self.last), weights, strict=True):
            layer.requires_grad_(False)
            layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.to(base.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """The layer with the weight ``U diag(p) Vh``."""
        z = self.first(x)
        return self.last(z * (self.p[:, None, None] if isinstance(self.first, nn.Conv2d) else self.p))


def vit_b_layers(width: int = 768) -> Makers:
    """The layers of ViT-B's neck and transformer, or narrower ones in proportion: how to make each, and its inputs."""
    neck, wide, place = width // 3, 4 * width, device()
    return {
        f"conv1 {width}->{neck}, 1x1": (lambda: nn.Conv2d(width, neck, 1, bias=False, device=place), width),
        f"conv2 {neck}->{neck}, 3x3": (lambda: nn.Conv2d(neck, neck, 3, padding=1, bias=False, device=place), neck),
        f"linear {wide}->{width}": (lambda: nn.Linear(wide, width, device=place), wide),
        f"linear {width}->{width}": (lambda: nn.Linear(width, width, device=place), width),
    }


def tokens(channels: int, side: int, batch: int = 1) -> Tensor:
    """Random input as the neck gets it: channels last in memory, (batch, side, side, channels)."""
    return torch.randn(batch, side, side, channels, device=device())


def as_input(layer: nn.Module, x: Tensor) -> Tensor:
    """The same memory in the order that the layer wants."""
    return x.permute(0, 3, 1, 2) if isinstance(layer, nn.Conv2d) else x


def coefficients(layer: nn.Module, **fields: Any) -> nn.Module:
    """The layer with trained coefficients."""
    return get_peft_model(nn.Sequential(layer), SVDCoefficientConfig(target_modules=["0"], **fields)).base_model.model


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> Run:
    """One forward and backward pass."""
    return lambda: layer(x).backward(dy)


def measure_layers(layers: Makers, side: int, rounds: int) -> str:
    """Forward and backward of each layer, over the plain layer's."""
    parts = []
    for input_grad in (False, True):
        rows = []
        for name, (make, channels) in layers.items():
            rows.append([name, *_one_layer(name, make, channels, side, rounds, input_grad=input_grad)])
        header = ["layer", "samparser", "goal", "factored", "rebuilt", "LoRA r=4", "SVF, three layers"]
        title = (
            "input with gradient, over forward and backward of the frozen layer"
            if input_grad
            else "frozen input, over the forward pass of the frozen layer"
        )
        parts.append(f"Forward and backward, {title} ({side}x{side} positions):\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def _one_layer(
    name: str, make: Callable[[], nn.Module], channels: int, side: int, rounds: int, *, input_grad: bool
) -> list[str]:
    torch.manual_seed(0)
    base: Any = make().requires_grad_(False)

    def copy() -> nn.Module:
        new = make().requires_grad_(False)
        new.load_state_dict(base.state_dict())
        return new

    x = as_input(base, tokens(channels, side)).requires_grad_(input_grad)
    dy = torch.randn_like(base(x).detach())

    def forward_only() -> None:
        with torch.no_grad():
            base(x)

    lora = get_peft_model(nn.Sequential(copy()), LoraConfig(target_modules=["0"], r=4)).base_model.model
    candidates = {
        "auto": coefficients(copy()),
        "factored": coefficients(copy(), form="factored"),
        "rebuilt": coefficients(copy(), form="rebuilt"),
        "lora": lora,
        "svf": ThreeLayers(base),
    }
    runs = {"plain": step(base, x, dy) if input_grad else forward_only}
    runs |= {key: step(layer, x, dy) for key, layer in candidates.items()}
    timings = alternate(runs, rounds, baseline="plain", inner=repeats(runs["plain"], rounds))
    goal = next((value for key, value in GOALS.items() if name.startswith(key)), "")
    goals = [goal if not input_grad else ""]
    cells = [cell(timings[key]) for key in candidates]
    return [cells[0], *goals, *cells[1:]]


def measure_evaluation(layers: Makers, side: int, rounds: int) -> str:
    """Without gradients: a new adapter, one that was trained, a disabled and a merged one, over the plain layer."""
    rows = []
    for name, (make, channels) in layers.items():
        base: Any = make().requires_grad_(False)
        x = as_input(base, tokens(channels, side))
        variants = {"new": coefficients(make()), "trained": coefficients(make()), "disabled": coefficients(make())}
        variants["merged"] = coefficients(make())
        with torch.no_grad():
            for module in (variants["trained"][0], variants["merged"][0]):
                module.svd_coefficient_p["default"].mul_(1.1)
        variants["disabled"][0].enable_adapters(False)
        variants["merged"][0].merge()
        runs = {"plain": _no_grad(base, x)}
        runs |= {key: _no_grad(layer.eval(), x) for key, layer in variants.items()}
        timings = alternate(runs, rounds, baseline="plain", inner=repeats(runs["plain"], rounds))
        rows.append([name, *(cell(timings[key]) for key in variants)])
    header = ["layer", "new adapter", "trained adapter", "disabled", "merged"]
    return f"Evaluation, over the plain layer:\n\n{table(header, rows)}"


def _no_grad(layer: nn.Module, x: Tensor) -> Run:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def measure_mixed_batch(layers: Makers, side: int, rounds: int, adapters: int = 4) -> str:
    """A batch with an adapter of its own for each sample, over one plain layer on the batch."""
    rows = []
    for name, (make, channels) in layers.items():
        base: Any = make().requires_grad_(False)
        model = get_peft_model(nn.Sequential(make()), SVDCoefficientConfig(target_modules=["0"], init_weights=False))
        for number in range(1, adapters):
            model.add_adapter(f"a{number}", SVDCoefficientConfig(target_modules=["0"], init_weights=False))
        model.eval()
        names = list(model.peft_config)
        x = as_input(base, tokens(channels, side, batch=adapters))

        def mixed(model: Any = model, x: Tensor = x, names: list[str] = names) -> None:
            with torch.no_grad():
                model(x, adapter_names=names)

        runs = {"plain": _no_grad(base, x), "mixed": mixed}
        timings = alternate(runs, rounds, baseline="plain", inner=repeats(runs["plain"], rounds))
        goal = next((value for key, value in BATCH_GOALS.items() if name.startswith(key)), "")
        rows.append([name, cell(timings["mixed"]), goal])
    return f"A batch of {adapters} samples with {adapters} adapters, over the plain layer:\n\n" + table(
        ["layer", "adapter_names=[...]", "goal"], rows
    )
