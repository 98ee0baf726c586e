"""Small models with every kind of layer the tuner adapts, weights of a trained model's size, and adapters on them."""

from pathlib import Path

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from samparser import SVDCoefficientConfig
from samparser.tuner import changed_layer, functional
from samparser.tuner.factors import Factors
from samparser.tuner.layer import SVDCoefficientLayer

OLD_TORCH = Version(torch.__version__) < Version("2.7")
"""torch 2.6 cannot do some things that PEFT and torch's sharding need; the tests of these say so."""

transformers_at_hand, peft_at_hand = Version(transformers.__version__), Version(peft.__version__)
ASKS_FOR_NEWER_PEFT = transformers_at_hand >= Version("5.24") and peft_at_hand < Version("0.22")
SKIP_NEWER_PEFT = pytest.mark.skipif(
    ASKS_FOR_NEWER_PEFT,
    reason="transformers 5.24 asks for peft 0.22, which is not out, in its own add_adapter, set_adapter and saving",
)


class MLP(nn.Module):
    """Two linear layers with a norm between them; the second has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 12)
        self.norm = nn.LayerNorm(12)
        self.lin1 = nn.Linear(12, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(self.norm(self.lin0(x)).relu())


class ConvNet(nn.Module):
    """Convolutions in a container called neck, one of them with groups, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.neck = nn.Sequential(
            nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
        )
        self.bottleneck = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bottleneck(self.neck(self.stem(x)).relu()).mean((2, 3)))


class Mixed(nn.Module):
    """A convolution, transformers' Conv1D and a linear layer behind each other, as in no real model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1d = Conv1D(9, 6)
        self.lin = nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(self.conv1d(self.conv(x).flatten(2).transpose(1, 2).contiguous()).relu())


class Upscaler(nn.Module):
    """Transposed convolutions, one that gives blocks and one with overlap, groups and padding, and a mask's head."""

    def __init__(self) -> None:
        super().__init__()
        self.upscale = nn.Sequential(nn.ConvTranspose2d(6, 4, 2, stride=2), nn.GELU())
        self.overlap = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.overlap(self.upscale(x)).relu()).mean((2, 3))


class Blocks(nn.Module):
    """Three numbered blocks with two linear layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)}) for _ in range(3))
        self.out = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = x + block["v"](block["q"](x).tanh())
        return self.out(x)


INPUTS = {
    "MLP": (4, 10),
    "ConvNet": (4, 3, 9, 8),
    "Upscaler": (4, 6, 3, 4),
    "Mixed": (4, 2, 5, 4),
    "Blocks": (4, 6),
}
TARGETS = {
    "MLP": ["lin0", "lin1"],
    "ConvNet": ["neck", "head"],
    "Upscaler": ["upscale", "overlap", "head"],
    "Mixed": ["conv", "conv1d", "lin"],
    "Blocks": ["q", "v"],
}
MODELS = {"MLP": MLP, "ConvNet": ConvNet, "Upscaler": Upscaler, "Mixed": Mixed, "Blocks": Blocks}


def make(kind: str, seed: int = 0) -> nn.Module:
    """A model in eval mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return model.eval()


def batch(kind: str, seed: int = 1) -> torch.Tensor:
    """An input for a model of this kind, four samples."""
    return torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(seed))


def output(model: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
    """What the model gives in eval mode without gradients: freezing alone may choose other kernels."""
    model.eval()
    with torch.no_grad():
        return model(*args, **kwargs)


def move(model: nn.Module, adapter: str = "default", *, seed: int = 2, by: float = 0.3) -> None:
    """Train an adapter, in effect: every one of its trained numbers moves by about a third."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind, _, key = name.rpartition(".")
            if key != adapter or "svd_coefficient_" not in kind or not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            size = 1.0 if kind.endswith("_d") else parameter.abs().mean()
            parameter.add_(by * size * noise)


def train(model: nn.Module, x: torch.Tensor, steps: int = 3, lr: float = 1e-2) -> None:
    """A few steps of Adam on whatever requires a gradient."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.eval()


def trained_names(model: nn.Module) -> set[str]:
    """The names of everything that requires a gradient."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def with_adapters(kind: str, *names: str, targets=None, **choices) -> nn.Module:
    """A model with adapters that were moved in different directions; the first is active."""
    targets = targets or TARGETS[kind]
    model = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=targets, **choices), names[0])
    for name in names[1:]:
        model.add_adapter(name, SVDCoefficientConfig(target_modules=targets, **choices))
    for seed, name in enumerate(names):
        model.set_adapter(name)
        move(model, name, seed=seed)
    model.set_adapter(names[0])
    return model


def layers(model: nn.Module) -> list[SVDCoefficientLayer]:
    """The adapted layers of a model."""
    return [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]


def activate(model: nn.Module, names: list[str]) -> None:
    """Make several adapters active at once."""
    model.base_model.set_adapter(names)


def saved(tmp_path: Path, kind: str = "ConvNet", **choices) -> Path:
    """The folder of an adapter that was trained on `make(kind)`, under a folder."""
    model = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=TARGETS[kind], **choices))
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def unchanged(model: nn.Module, kind: str) -> None:
    """Assert that a model is what `make(kind)` gives."""
    twin = make(kind)
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in model.named_parameters())
    assert not hasattr(model, "peft_config")


def without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the test run's checks of shapes away, which are no part of the library: no compiler looks through them."""
    for module, name in [(functional, "weight_change"), (functional, "unfold"), (changed_layer, "tie_change")]:
        checked = getattr(module, name)
        monkeypatch.setattr(module, name, getattr(checked, "__wrapped__", checked))
    checked = Factors.with_coefficients
    monkeypatch.setattr(Factors, "with_coefficients", getattr(checked, "__wrapped__", checked))
    for name in ("rank", "is_meta"):
        getter = getattr(Factors, name).fget
        monkeypatch.setattr(Factors, name, property(getattr(getter, "__wrapped__", getter)))
