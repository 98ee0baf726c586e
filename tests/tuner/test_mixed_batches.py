"""Batches in which every sample has an adapter of its own."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig
from tests.tuner.models import INPUTS, batch, make, move, output, with_adapters

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("trainable", ["coefficients", "both"])
@pytest.mark.parametrize("kind", INPUTS)
def test_a_batch_with_an_adapter_for_each_sample_equals_the_samples_by_themselves(kind, trainable):
    model, x = with_adapters(kind, "a", "b", trainable=trainable), batch(kind)
    model.set_scale("b", 0.5)
    names = ["b", "__base__", "a", "b"]
    expected = []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                expected.append(output(model, x[row : row + 1]))
        else:
            model.set_adapter(name)
            expected.append(output(model, x[row : row + 1]))
    mixed = output(model, x, adapter_names=names)
    torch.testing.assert_close(mixed, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_mixed_batches_reach_layers_that_only_one_adapter_has():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], rank=3), "a")
    model.add_adapter("b", SVDCoefficientConfig(target_modules=["lin1"]))
    for name in ("a", "b"):
        model.set_adapter(name)
        move(model, name)
    x = batch("MLP")
    mixed = output(model, x, adapter_names=["b"] * 4)
    torch.testing.assert_close(mixed, output(model, x), **CLOSE)


def test_mixed_batches_refuse_what_they_cannot_do():
    model, x = with_adapters("MLP", "a", "b"), batch("MLP")
    with pytest.raises(ValueError, match=r"same as the number of inputs, but got 2 and 4 respectively, at lin0"):
        output(model, x, adapter_names=["a", "b"])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): c. There are __base__, a, b"):
        output(model, x, adapter_names=["a", "b", "c", "a"])
    model.train()
    with pytest.raises(ValueError, match="when the model is in training mode"):
        model(x, adapter_names=["a"] * 4)
    model.eval()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"when there are merged adapters.*Merged are: a"):
        output(model, x, adapter_names=["a"] * 4)


def test_a_multi_head_attention_that_would_ignore_the_adapters_of_the_samples_is_refused():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mha(x, x, x)[0]

    model = get_peft_model(Attention(), SVDCoefficientConfig(target_modules=["out_proj"]), "a")
    x = torch.randn(2, 5, 8)
    with pytest.raises(
        TypeError, match=r"mha is an nn.MultiheadAttention, which reads the weight of its adapted out_proj"
    ):
        output(model, x, adapter_names=["a", "__base__"])
    assert output(model, x).shape == x.shape
