import pytest
import torch
from torch import nn

from samparser.methods import build
from samparser.methods.cost import _counter, count_macs, count_parameters, meta_model, method_cost
from tests.conftest import make_tiny_sam, tiny_sam_config


def test_sam_vit_b_has_93_7_million_parameters_and_487_85_gmac():
    model = meta_model().requires_grad_(False)
    total, trained = count_parameters(model)
    assert (total, trained) == (93_735_728, 0)
    forward, step = count_macs(model)
    assert forward == step == 487_851_018_752


def test_a_linear_layer_takes_in_times_out_products_a_row_and_as_many_for_each_gradient():
    layer = nn.Linear(5, 7, device="meta")
    x = torch.empty(11, 5, device="meta", requires_grad=True)
    with _counter() as counter:
        y = layer(x)
        assert counter.get_total_flops() == 2 * 11 * 5 * 7
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 11 * 5 * 7


@pytest.mark.parametrize("groups", [1, 4, 8], ids=["dense", "grouped", "depthwise"])
def test_the_gradients_of_a_convolution_take_as_many_products_as_its_forward(groups):
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups, device="meta")
    x = torch.empty(2, 8, 6, 5, device="meta", requires_grad=True)
    with _counter() as counter:
        y = layer(x)
        forward = counter.get_total_flops()
        assert forward == 2 * 2 * (6 * 5) * 16 * (8 // groups) * 9
        y.sum().backward()
    assert counter.get_total_flops() == 3 * forward


def test_a_frozen_input_saves_its_gradient():
    layer = nn.ConvTranspose2d(4, 6, 2, stride=2, device="meta")
    x = torch.empty(1, 4, 5, 5, device="meta")
    with _counter() as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * (5 * 5) * 4 * 6 * 4


def test_a_model_with_weights_is_counted_like_one_without():
    tiny = make_tiny_sam()
    build("lora", tiny)
    assert count_macs(tiny) == count_macs(build("lora", meta_model(tiny_sam_config())))
    assert not tiny.training
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="no method 'x'"):
        method_cost("x")
