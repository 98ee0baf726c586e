import pytest
import torch
from peft import get_peft_model
from torch import nn

from samparser.methods.factored import factored_form
from samparser.tuner import SVDCoefficientConfig


@pytest.mark.parametrize(
    ("layer", "shape", "weights"),
    [
        (nn.Conv2d(6, 4, 3, padding=1), (1, 6, 5, 5), [(4, 6, 3, 3), (4, 4, 1, 1)]),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (1, 6, 5, 5), [(6, 6, 1, 1), (6, 4, 2, 2)]),
        (nn.ConvTranspose2d(6, 1, 3, stride=2, padding=1), (1, 6, 5, 5), [(6, 6, 1, 1), (6, 1, 3, 3)]),
        (nn.Linear(6, 4), (5, 6), [(4, 6), (4, 4)]),
    ],
    ids=repr,
)
def test_a_layer_becomes_v_p_and_u_of_its_shapes(layer, shape, weights):
    with torch.device("meta"):
        plain = nn.Sequential(layer.to("meta"))
    expected = plain(torch.empty(shape, device="meta")).shape
    tuned = get_peft_model(nn.Sequential(layer), SVDCoefficientConfig(target_modules=["0"]))
    model = factored_form(tuned, plain)
    along, scale, last = model[0]
    assert [tuple(along.weight.shape), tuple(last.weight.shape)] == weights
    assert model(torch.empty(shape, device="meta")).shape == expected
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.1.p"]
    assert scale.p.numel() == len(tuned.base_model.model[0].bases.p)
