"""Transposed convolutions: where they give blocks, in which memory, of which size, in which form, and SAM's own."""

import copy

import pytest
import torch
from torch import nn

from samparser.tuner import ConvTranspose2d
from samparser.tuner.factored import has_factors
from samparser.tuner.factors import factorize
from samparser.tuner.functional import cheaper_form, with_weight
from samparser.tuner.transposed import COST_OF_A_PRODUCT
from tests.tuner.models import output
from tests.tuner.strategies import adapted, wrap
from tests.tuner.test_functional import form_taken

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OVERLAP = {"kernel_size": 3, "stride": 2, "padding": 1}
BLOCKS = {"kernel_size": 2, "stride": 2}


def layer_and_input(geometry: dict, channels_last: bool = False) -> tuple[nn.ConvTranspose2d, torch.Tensor]:
    torch.manual_seed(4)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    return nn.ConvTranspose2d(6, 4, **geometry), torch.randn(2, 6, 5, 3).to(memory_format=memory)


@pytest.mark.parametrize(
    ("geometry", "output_size", "blocks"),
    [
        ({"kernel_size": 2, "stride": 2}, None, True),
        ({"kernel_size": (3, 1), "stride": (3, 1)}, None, True),
        ({"kernel_size": 1}, None, True),
        ({"kernel_size": 2, "stride": 2}, [10, 6], True),
        ({"kernel_size": 2, "stride": 2}, (2, 4, 10, 6), True),
        ({"kernel_size": 2, "stride": 2}, [11, 6], False),
        ({"kernel_size": 2, "stride": 3}, None, False),
        ({"kernel_size": 3, "stride": 2}, None, False),
        ({"kernel_size": 2, "stride": 2, "padding": 1}, None, False),
        ({"kernel_size": 2, "stride": 2, "output_padding": 1}, None, False),
        ({"kernel_size": 2, "stride": 2, "dilation": 2}, None, False),
        ({"kernel_size": 2, "stride": 2, "groups": 2}, None, False),
    ],
)
def test_a_layer_has_factors_where_its_blocks_do_not_overlap(geometry, output_size, blocks):
    base, x = layer_and_input(geometry)
    assert has_factors(base, x, output_size) == blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_the_output_has_its_channels_where_the_input_has_them(channels_last, dtype):
    base, x = layer_and_input(BLOCKS, channels_last)
    ours = adapted(wrap(base.to(dtype), form="factored")).train()
    y, plain = ours(x.to(dtype)), base(x.to(dtype))
    assert y.dtype == plain.dtype == dtype
    assert y.stride() == plain.stride()
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("shape", [(6, 5, 3), (2, 6, 1, 1), (0, 6, 5, 3)], ids=str)
def test_any_batch_is_taken(shape):
    base, _ = layer_and_input(BLOCKS)
    x = torch.randn(shape)
    torch.testing.assert_close(adapted(wrap(base, form="factored")).train()(x), base(x), **CLOSE)


@pytest.mark.parametrize(("geometry", "sizes"), [(OVERLAP, ([9, 5], [10, 6])), (BLOCKS, ([10, 6], [11, 7]))], ids=str)
def test_an_output_size_reaches_the_layer_in_every_state(geometry, sizes):
    base, x = layer_and_input(geometry)
    model = wrap(copy.deepcopy(base), "a", "b")
    ours = adapted(model)
    for size in sizes:
        plain = base(x, output_size=size)
        assert plain.shape[2:] == torch.Size(size)
        model.set_adapter("a")
        expected = with_weight(base, x, ours.weight, size)
        assert expected.shape == plain.shape
        torch.testing.assert_close(ours.train()(x, size), expected, **CLOSE)
        torch.testing.assert_close(output(ours, x, output_size=size), expected, **CLOSE)
        mixed = output(ours, x, output_size=size, adapter_names=["__base__", "a"])
        torch.testing.assert_close(mixed, torch.cat([plain[:1], expected[1:]]), **CLOSE)
        assert torch.equal(output(ours, x, size, adapter_names=["__base__"] * 2), plain)
        model.merge_adapter(["a"])
        torch.testing.assert_close(output(ours, x, size), expected, **CLOSE)
        with model.disable_adapter():
            assert torch.equal(output(ours, x, size), plain)
        model.unmerge_adapter()


def test_an_output_size_that_is_not_possible_is_refused_as_by_the_plain_layer():
    base, x = layer_and_input(BLOCKS)
    with pytest.raises(ValueError, match=r"requested an output size of \[12, 6\]"):
        adapted(wrap(base)).train()(x, [12, 6])
    with pytest.raises(TypeError, match=r"output_size=\[5, 3\] is for transposed convolutions; this is Conv2d\(6, 4"):
        adapted(wrap(nn.Conv2d(6, 4, 1), init_weights=False)).eval()(x, output_size=[5, 3])


def test_products_take_the_place_of_the_convolution_also_where_counting_alone_would_not():
    # A square matrix: for a linear layer rebuilding takes fewer products.
    x = torch.randn(1, 16, 12, 12)
    assert form_taken(adapted(wrap(nn.ConvTranspose2d(16, 4, 2, stride=2))), x) == "factored"
    assert form_taken(adapted(wrap(nn.Linear(16, 16))), x.flatten(2).mT) == "rebuilt"
    assert cheaper_form(16, 16, 16, 144, input_grad=False, cost=COST_OF_A_PRODUCT) == "factored"
    assert cheaper_form(16, 16, 16, 144, input_grad=False) == "rebuilt"


def test_the_coefficients_are_the_singular_values_of_the_layer_as_a_map():
    base, _ = layer_and_input({**BLOCKS, "bias": False})
    columns = torch.stack([base(x[:, None, None]).flatten() for x in torch.eye(6)], 1)
    torch.testing.assert_close(adapted(wrap(base)).bases.p, torch.linalg.svdvals(columns))


def test_the_gradient_is_that_of_the_weight_along_the_bases_and_the_weight_gets_none():
    base, x = layer_and_input(BLOCKS)
    ours = adapted(wrap(copy.deepcopy(base))).train()
    ours(x).square().sum().backward()
    assert ours.base_weight.grad is None
    base(x).square().sum().backward()
    u, _, vh = factorize(base.weight.flatten(1))
    slope = u.T @ base.weight.grad.flatten(1) @ vh.T
    torch.testing.assert_close(ours.svd_coefficient_p["default"].grad, slope.diagonal(), rtol=1e-4, atol=1e-4)
    assert isinstance(ours, ConvTranspose2d)
