"""What hypothesis draws for the laws of the tuner: layers of any geometry, their inputs, adapters that were moved."""

import torch
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from samparser import SVDCoefficientConfig
from samparser.tuner.layer import SVDCoefficientLayer
from tests.tuner.models import move


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return nn.Conv2d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )


@st.composite
def transposed_convolutions(draw):
    """Half of them give blocks that do not overlap, the others have any geometry."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    channels = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return nn.ConvTranspose2d(*channels, kernel, stride=kernel, bias=bias)
    groups, stride, dilation = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return nn.ConvTranspose2d(
        groups * channels[0],
        groups * channels[1],
        kernel,
        stride=stride,
        padding=draw(st.integers(0, 2)),
        output_padding=draw(st.integers(0, max(stride, dilation) - 1)),
        groups=groups,
        bias=bias,
        dilation=dilation,
    )


@st.composite
def linears(draw):
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        return Conv1D(rows, columns)
    return nn.Linear(columns, rows, bias=draw(st.booleans()))


LAYERS = st.one_of(convolutions(), transposed_convolutions(), linears())
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def input_for(layer: nn.Module) -> torch.Tensor:
    """An input of two samples for a plain layer, in the dtype of its weight."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        x = torch.randn(2, layer.in_channels, 8, 9)
    else:
        x = torch.randn(2, 3, layer.nx if isinstance(layer, Conv1D) else layer.in_features)
    return x.to(layer.weight.dtype)


def wrap(layer: nn.Module, *names: str, **choices) -> nn.Module:
    """A model of one layer with adapters, "default" if none is named, each moved in a direction of its own if named."""
    config = {"target_modules": ["layer"], **choices}
    model = get_peft_model(nn.ModuleDict({"layer": layer}), SVDCoefficientConfig(**config), *names[:1])
    for name in names[1:]:
        model.add_adapter(name, SVDCoefficientConfig(**config))
    for seed, name in enumerate(names):
        model.set_adapter(name)
        move(model, name, seed=seed)
    return model


def adapted(model: nn.Module) -> SVDCoefficientLayer:
    """The adapted layer of a model; the first where there are several."""
    return next(module for module in model.modules() if isinstance(module, SVDCoefficientLayer))
