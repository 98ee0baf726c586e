import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from samparser import SVDCoefficientConfig
from samparser.tuner import changed_layer, functional
from samparser.tuner.factored import by_factors, combine
from samparser.tuner.factors import Factors, Inside, factorize
from samparser.tuner.functional import cheaper_form
from tests.reference.functional import adapted_weight, layer_output, three_layers
from tests.tuner.models import OLD_TORCH

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
LAYERS = {
    "pointwise conv": lambda: nn.Conv2d(12, 5, 1, bias=False),
    "pointwise conv with bias": lambda: nn.Conv2d(5, 12, 1),
    "conv": lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "strided dilated conv": lambda: nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "strided pointwise conv": lambda: nn.Conv2d(7, 5, 1, stride=2),
    "blocks": lambda: nn.ConvTranspose2d(6, 5, 2, stride=2),
    "uneven blocks": lambda: nn.ConvTranspose2d(5, 2, (3, 2), stride=(3, 2), bias=False),
    "many inputs to a block": lambda: nn.ConvTranspose2d(9, 1, 2, stride=2, bias=False),
    "linear": lambda: nn.Linear(9, 4),
    "wide linear": lambda: nn.Linear(4, 9, bias=False),
}


def make(name: str, dtype: torch.dtype, generator: torch.Generator, channels_last: bool = False):
    """A layer, an input of two samples, and its factors with coefficients that were moved."""
    torch.manual_seed(3)
    base = LAYERS[name]().to(dtype).requires_grad_(False)
    if isinstance(base, CONVOLUTIONS):
        x = torch.randn(2, base.in_channels, 6, 7, generator=generator, dtype=dtype)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
    else:
        x = torch.randn(2, 3, base.in_features, generator=generator, dtype=dtype)
    u, p, vh = factorize(base.weight.flatten(1))
    return base, x, u, p * torch.linspace(0.5, 1.5, len(p), dtype=dtype), vh


@pytest.mark.parametrize("input_grad", [False, True], ids=["frozen input", "input with gradient"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_factored_form_equals_the_layer_with_the_whole_weight(name, dtype, channels_last, input_grad, generator):
    base, x, u, p, vh = make(name, dtype, generator, channels_last)
    ours_p, ours_x = p.clone().requires_grad_(True), x.clone().requires_grad_(input_grad)
    y = by_factors(base, ours_x, Inside(u, ours_p, vh))
    theirs_p, theirs_x = p.double().requires_grad_(True), x.double().requires_grad_(input_grad)
    expected = layer_output(base, theirs_x, adapted_weight(u, theirs_p, vh))
    torch.testing.assert_close(y, expected.to(dtype), **TOLERANCE[dtype])

    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    y.backward(gradient.to(dtype))
    expected.backward(gradient)
    # A gradient of p is a sum over all positions.
    torch.testing.assert_close(ours_p.grad, theirs_p.grad.to(dtype), rtol=TOLERANCE[dtype]["rtol"], atol=1e-4)
    if input_grad:
        torch.testing.assert_close(ours_x.grad, theirs_x.grad.to(dtype), **TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["pointwise conv with bias", "conv", "strided dilated conv", "blocks", "linear"])
def test_first_and_second_derivatives_are_those_of_finite_differences(name, generator):
    base, x, u, p, vh = make(name, torch.float64, generator)
    inputs = (x[:1].requires_grad_(True), p.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda x, p: by_factors(base, x, Inside(u, p, vh)), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, p: by_factors(base, x, Inside(u, p, vh)), inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["pointwise conv", "conv", "uneven blocks", "linear"])
def test_nothing_but_the_projection_is_kept_for_the_backward_pass(name, generator):
    base, x, u, p, vh = make(name, torch.float32, generator, channels_last=True)
    kept = []
    for input_grad in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            y = by_factors(base, x.clone().requires_grad_(input_grad), Inside(u, p.clone().requires_grad_(True), vh))
        activations = [shape for shape in kept if len(shape) == x.ndim and shape != vh.shape]
        places = x if isinstance(base, nn.ConvTranspose2d) else y
        activations = [shape for shape in activations if shape.numel() >= places.numel() // places.shape[1]]
        kernel = base.weight.shape
        activations = [shape for shape in activations if shape[1:] != kernel[1:]]
        expected = (*x.shape[:-1], len(p)) if name == "linear" else (len(x), len(p), *places.shape[2:])
        assert activations == [torch.Size(expected)], input_grad
        kept.clear()


@pytest.mark.parametrize(("name", "positions"), [("conv", 2 * 6 * 7), ("blocks", 2 * 6 * 7)])
def test_no_gradient_is_computed_for_a_frozen_input_or_basis(name, positions, generator):
    base, x, u, p, vh = make(name, torch.float32, generator)
    from torch.utils.flop_counter import FlopCounterMode

    def products(input_grad: bool) -> int:
        y = by_factors(base, x.clone().requires_grad_(input_grad), Inside(u, p.clone().requires_grad_(True), vh))
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        return counter.get_total_flops() // 2

    rank, (out, fan_in) = len(p), base.weight.flatten(1).shape
    if name == "blocks":  # Rows are inputs.
        out, fan_in = fan_in, out
    assert products(False) == positions * rank * out
    assert products(True) == positions * rank * (2 * out + fan_in)


def test_coefficients_for_each_sample_equal_one_run_for_each(generator):
    names = ["pointwise conv with bias", "conv", "blocks", "uneven blocks", "linear"]
    for name, channels_last in itertools.product(names, [False, True]):
        base, x, u, p, vh = make(name, torch.float32, generator, channels_last)
        each = torch.stack([p, 1 - 2 * p]).requires_grad_(True)
        y = by_factors(base, x, Inside(u, each, vh))
        expected = torch.cat([by_factors(base, x[i : i + 1], Inside(u, each[i], vh)) for i in range(2)])
        torch.testing.assert_close(y, expected, **TOLERANCE[torch.float32])
        assert torch.autograd.grad(y.sum(), each)[0].shape == each.shape


@pytest.mark.parametrize("name", ["pointwise conv with bias", "conv", "blocks", "linear"])
def test_autocast_computes_in_half_precision_and_keeps_gradients_in_float32(name, generator):
    base, x, u, p, vh = make(name, torch.float32, generator)
    p = p.requires_grad_(True)
    x = x.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = by_factors(base, x, Inside(u, p, vh))
        theirs = base(x)
    assert y.dtype == theirs.dtype == torch.bfloat16
    expected = by_factors(base, x, Inside(u, p, vh))
    torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)
    got = torch.autograd.grad(y.float().square().sum(), (x, p))
    wanted = torch.autograd.grad(expected.square().sum(), (x, p))
    for ours, exact in zip(got, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("name", ["pointwise conv", "blocks"])
def test_samples_can_be_mapped_over(name, generator):
    base, x, u, p, vh = make(name, torch.float32, generator)
    gradients = torch.func.vmap(
        torch.func.grad(lambda p, x: by_factors(base, x[None], Inside(u, p, vh)).sum()), (None, 0)
    )(p, x)
    for gradient, sample in zip(gradients, x, strict=True):
        one = p.clone().requires_grad_(True)
        by_factors(base, sample[None], Inside(u, one, vh)).sum().backward()
        torch.testing.assert_close(gradient, one.grad, **TOLERANCE[torch.float32])


def test_one_layer_equals_the_three_layers_of_svf(generator):
    base, x, u, p, vh = make("conv", torch.float32, generator)
    torch.testing.assert_close(
        by_factors(base, x, Inside(u, p, vh)), three_layers(base, p, u, vh)(x), **TOLERANCE[torch.float32]
    )


# The choice


@pytest.mark.parametrize(
    ("out", "fan_in", "rank", "frozen", "with_grad"),
    [
        (256, 768, 256, "factored", "factored"),  # conv1 of the neck of ViT-B
        (256, 2304, 256, "factored", "factored"),  # conv2
        (3072, 768, 768, "factored", "factored"),
        (768, 3072, 768, "factored", "factored"),
        (768, 768, 768, "rebuilt", "rebuilt"),
        (768, 768, 64, "factored", "factored"),  # few of the coefficients
    ],
)
def test_the_cheaper_form_of_sams_layers(out, fan_in, rank, frozen, with_grad):
    assert cheaper_form(out, fan_in, rank, 4096, input_grad=False) == frozen
    assert cheaper_form(out, fan_in, rank, 4096, input_grad=True) == with_grad


@given(st.integers(1, 999), st.integers(1, 999), st.integers(1, 999), st.integers(1, 9999), st.booleans())
def test_the_rule_counts_products(out, fan_in, rank, positions, input_grad):
    rank = min(rank, out, fan_in)
    inputs = rank * fan_in * positions * input_grad
    by_factors = 2 * rank * out * positions + rank * fan_in * positions + inputs
    by_weight = (2 + input_grad) * out * fan_in * positions + 2 * out * rank * fan_in
    # Written as one comparison of whole numbers; equal costs rebuild.
    expected = "factored" if by_factors < by_weight else "rebuilt"
    assert cheaper_form(out, fan_in, rank, positions, input_grad=input_grad) == expected


def wrap(base: nn.Module, **fields):
    model = get_peft_model(nn.Sequential(base), SVDCoefficientConfig(target_modules=["0"], **fields)).train()
    return model, model.base_model.model[0]


def form_taken(layer, x) -> str:
    """Reads off the graph which form a layer took."""
    y = layer(x)  # Kept: before torch 2.10 a graph forgets its functions with its output.
    names, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    return "factored" if any("_Combine" in name for name in names) else "rebuilt"


def test_a_layer_takes_the_cheaper_form_unless_one_is_asked_for():
    x = torch.randn(1, 64, 32)
    for out, by_itself in ((8, "factored"), (32, "rebuilt")):
        assert form_taken(wrap(nn.Linear(32, out))[1], x) == by_itself
        assert form_taken(wrap(nn.Linear(32, out), form="factored")[1], x) == "factored"
        assert form_taken(wrap(nn.Linear(32, out), form="rebuilt")[1], x) == "rebuilt"


@pytest.mark.parametrize(
    "base",
    [
        nn.Linear(16, 4),
        nn.Conv2d(16, 4, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        Conv1D(4, 16),
    ],
    ids=repr,
)
def test_both_forms_train_alike(base, generator):
    conv = isinstance(base, CONVOLUTIONS)
    x = torch.randn((2, base.in_channels, 6, 6) if conv else (2, 9, 16), generator=generator)
    results = []
    for form in ("factored", "rebuilt"):
        model, layer = wrap(base, form=form)
        state = layer.svd_coefficient_p["default"]
        with torch.no_grad():
            state.mul_(torch.linspace(0.5, 1.5, len(state)))
        assert form_taken(layer, x) == form
        loss = model(x).square().mean()
        loss.backward()
        results.append((loss.detach(), state.grad.clone()))
        base = model.unload()[0]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", [nn.Conv2d(16, 4, 1, bias=False), nn.ConvTranspose2d(16, 4, 2, 2)], ids=repr)
def test_a_new_adapter_changes_nothing(base, generator):
    x = torch.randn(2, 16, 8, 8, generator=generator)
    expected = base(x).detach()
    model, layer = wrap(base)
    assert form_taken(layer, x) == "factored"
    assert (layer(x) - expected).abs().max() < 1e-6 * expected.abs().max()
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
        assert torch.equal(model.eval()(x), expected)


def test_a_weight_that_was_changed_afterwards_is_not_replaced_by_its_old_factors(generator):
    base = nn.Linear(16, 4)
    x = torch.randn(3, 16, generator=generator)
    model, layer = wrap(base)
    assert form_taken(layer, x) == "factored"
    with torch.no_grad():
        base.weight.mul_(2)
    torch.testing.assert_close(model(x), base(x))
    assert form_taken(layer, x) == "factored"  # With the factors of the new weight.
    base.weight.requires_grad_(True)
    with torch.no_grad():
        base.weight.div_(2)
    assert form_taken(layer, x) == "rebuilt"  # A weight that is trained itself is not split again in every step.
    torch.testing.assert_close(model(x), base(x))


@pytest.mark.parametrize("fields", [{"trainable": "both"}, {"save_basis": True}], ids=str)
def test_bases_of_its_own_rule_the_factored_form_out(fields):
    with pytest.raises(ValueError, match=r"form='factored' uses the bases of the layer, but .*Leave form='auto'"):
        SVDCoefficientConfig(form="factored", **fields)
    assert form_taken(wrap(nn.Linear(32, 4), **fields)[1], torch.randn(1, 64, 32)) == "rebuilt"


def test_a_form_that_is_not_possible_is_refused():
    with pytest.raises(ValueError, match="form='fast' is not possible; choose one of 'auto', 'factored', 'rebuilt'"):
        SVDCoefficientConfig(form="fast")
    without = (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2),
        nn.ConvTranspose2d(4, 4, 3, stride=2),
        nn.ConvTranspose2d(4, 4, 2, stride=2, padding=1),
        nn.ConvTranspose2d(4, 4, 2, stride=2, output_padding=1),
        nn.ConvTranspose2d(4, 4, 2, stride=2, dilation=3),
    )
    for base in without:
        model, _ = wrap(base, form="factored")
        with pytest.raises(
            ValueError, match=r"0 has no factored form.*several groups or a transposed one whose blocks"
        ):
            model(torch.randn(1, 4, 5, 5))
        base = model.unload()[0]
        assert form_taken(wrap(base)[1], torch.randn(1, 4, 5, 5)) == "rebuilt"


def test_a_first_step_under_autocast_does_not_take_the_factors_for_those_of_another_weight():
    _, layer = wrap(nn.Linear(32, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert form_taken(layer, torch.randn(1, 64, 32)) == "factored"


def test_half_precision_weights_are_rebuilt():
    _, layer = wrap(nn.Linear(32, 4).to(torch.bfloat16))
    assert form_taken(layer, torch.randn(1, 64, 32, dtype=torch.bfloat16)) == "rebuilt"


@pytest.mark.parametrize("form", ["factored", "rebuilt"])
@pytest.mark.parametrize("base", [nn.Conv2d(8, 4, 3, padding=1), nn.ConvTranspose2d(8, 3, 2, stride=2)], ids=repr)
def test_a_layer_compiles_into_one_graph(base, form, generator, monkeypatch):
    if OLD_TORCH and form == "factored":
        pytest.skip("torch 2.6 cannot trace is_contiguous in the backward pass of a custom function; 2.7 can")
    # The test run's checks of shapes are no part of the library, and no compiler looks through them.
    for module, name in [(functional, "weight_change"), (functional, "unfold"), (changed_layer, "tie_change")]:
        checked = getattr(module, name)
        monkeypatch.setattr(module, name, getattr(checked, "__wrapped__", checked))
    checked = Factors.with_coefficients
    monkeypatch.setattr(Factors, "with_coefficients", getattr(checked, "__wrapped__", checked))
    for name in ("rank", "is_meta"):
        getter = getattr(Factors, name).fget
        monkeypatch.setattr(Factors, name, property(getattr(getter, "__wrapped__", getter)))
    model, layer = wrap(base, form=form)
    x = torch.randn(1, 8, 6, 6, generator=generator, requires_grad=True)
    p = layer.svd_coefficient_p["default"]
    expected = model(x)
    wanted = torch.autograd.grad(expected.square().sum(), (x, p))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), (x, p)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


# From a projection


@pytest.mark.parametrize("base", [nn.Conv2d(16, 4, 1), nn.Linear(16, 4)], ids=repr)
def test_a_layer_goes_on_from_a_projection_computed_before(base, generator):
    conv = isinstance(base, nn.Conv2d)
    x = torch.randn((2, 16, 6, 6) if conv else (2, 9, 16), generator=generator)
    model, layer = wrap(base)
    p = layer.svd_coefficient_p["default"]
    with torch.no_grad():
        p.mul_(torch.linspace(0.5, 1.5, len(p)))
    z = torch.einsum("rc,bchw->brhw" if conv else "rc,btc->btr", layer.projection(), x)

    def outputs(given):
        with model.disable_adapter():
            base_output = model(given)
        return model(given), base_output

    expected = outputs(x)
    layer.takes_projection = True
    for ours, theirs in zip(outputs(z), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float32])
    model.eval()
    mixed = model(z, adapter_names=["__base__", "default"])
    torch.testing.assert_close(mixed, torch.cat([expected[1][:1], expected[0][1:]]), **TOLERANCE[torch.float32])
    layer.merge()
    torch.testing.assert_close(model(z), expected[0], **TOLERANCE[torch.float32])


def test_a_projection_is_refused_where_it_does_not_stand_for_the_input():
    _, layer = wrap(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"0 cannot start from a projection.*more than one position"):
        layer.projection()
    _, layer = wrap(nn.ConvTranspose2d(4, 4, 2, stride=2))
    with pytest.raises(ValueError, match=r"0 cannot start from a projection.*a transposed convolution"):
        layer.projection()
    _, layer = wrap(nn.Linear(8, 4), save_basis=True)
    with pytest.raises(ValueError, match="adapter 'default' has bases of its own"):
        layer.projection()
    _, layer = wrap(nn.Linear(8, 4))
    with torch.no_grad():
        layer.base_layer.weight += 1
    with pytest.raises(ValueError, match="no longer the one"):
        layer.projection()


def test_combining_takes_any_number_of_leading_dimensions(generator):
    u, p = torch.randn(5, 3, generator=generator), torch.randn(3, generator=generator)
    z = torch.randn(2, 4, 6, 3, generator=generator)
    torch.testing.assert_close(combine(z, u * p, None, channels=-1), (z * p) @ u.T)
    first = z[0].permute(2, 0, 1)
    torch.testing.assert_close(
        combine(first, u * p, None, channels=-3), ((z[0] * p) @ u.T).permute(2, 0, 1), rtol=1e-5, atol=1e-6
    )
