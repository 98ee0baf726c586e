"""The tuner with a model on another device than the CPU: nothing mixes devices, and values are those of the CPU."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig, initialize_expansion
from tests.second_device import MixedDevicesError, assert_same, watching
from tests.tuner.expanded import expanded, stir
from tests.tuner.models import INPUTS, TARGETS, batch, layers, make, move, output, with_adapters

LAYERS = {
    "pointwise": (lambda: nn.Conv2d(12, 4, 1), (2, 12, 5, 5)),
    "channels last": (lambda: nn.Conv2d(12, 4, 1), (2, 12, 5, 5)),
    "3x3": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 5)),
    "linear": (lambda: nn.Linear(12, 4), (2, 7, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 5, 5)),
    "overlapping": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 5, 5)),
}
FORMS = [(layer, form) for layer in LAYERS for form in ("factored", "rebuilt")]
FORMS.remove(("overlapping", "factored"))


def step(model, x):
    """Forward and backward: the output, then the gradients of the input and of all that trains."""
    x = x.detach().requires_grad_(x.requires_grad)
    y = model(x)
    y.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients
    return [y, *([x.grad] if x.requires_grad else []), *gradients.values()]


def assert_equal_there(run, model, x, gpu):
    """Assert that a function of a model and its input gives tensors on the device as it does on the CPU."""
    here = run(copy.deepcopy(model), x)
    there = run(model.to(gpu), x.detach().to(gpu).requires_grad_(x.requires_grad))
    for one, other in zip(there, here, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("input_grad", [False, True], ids=["frozen input", "input with gradient"])
@pytest.mark.parametrize("expansion", [None, "pairs", "gradient"])
@pytest.mark.parametrize(("layer", "form"), FORMS)
def test_a_step_of_every_form_and_layer(gpu, layer, form, expansion, input_grad):
    torch.manual_seed(0)
    make_layer, shape = LAYERS[layer]
    x = torch.randn(shape)
    choices = {"expansion": expansion, "expansion_rank": 2} if expansion else {}
    config = SVDCoefficientConfig(target_modules=["0"], form=form, **choices)
    model = get_peft_model(nn.Sequential(make_layer()), config)
    if expansion:
        passes = [lambda model: model(x).square().mean()] * 2
        initialize_expansion(model, passes, show=False)
    stir(model)
    if layer == "channels last":
        x = x.to(memory_format=torch.channels_last)
    assert_equal_there(step, model.train(), x.requires_grad_(input_grad), gpu)


@pytest.mark.parametrize("choices", [{"parametrization": "relative"}, {"trainable": "both"}, {"rank": 2}], ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_step_of_every_model_without_a_wait_for_the_device(gpu, kind, choices):
    model = with_adapters(kind, "default", **choices).train()
    x = batch(kind)
    assert_equal_there(step, model, x, gpu)  # the first step on the device looks whether the bases fit
    x = x.to(gpu)
    with watching() as seen:
        step(model, x)
    assert not seen.waits
    assert not seen.sent


@pytest.mark.parametrize("kind", INPUTS)
def test_an_adapter_made_on_the_device_is_that_of_the_cpu(gpu, kind):
    config = SVDCoefficientConfig(target_modules=TARGETS[kind])
    here, there = get_peft_model(make(kind), config), get_peft_model(make(kind).to(gpu), config)
    for mine, other in zip(layers(there), layers(here), strict=True):
        for one, two in zip(mine.bases, other.bases, strict=True):
            assert_same(one, two)
    for model in (here, there):
        move(model)
    assert_same(there(batch(kind).to(gpu)), here(batch(kind)))


def switched(model, x):
    """What a trained adapter gives in every state that it can be in: the names of the states and their outputs."""
    model.eval()
    outputs = {}
    with torch.no_grad():
        outputs["kept"] = model(x)
        outputs["kept, again"] = model(x)
        outputs["mixed"] = model(x, adapter_names=["b", "__base__", "default", "b"])
        with model.disable_adapter():
            outputs["disabled"] = model(x)
        model.merge_adapter(safe_merge=True)
        outputs["merged"] = model(x)
        model.unmerge_adapter()
        model.add_weighted_adapter(["default", "b"], [0.5, -1.0], "sum", combination_type="linear")
        model.set_adapter("sum")
        outputs["sum"] = model(x)
        model.set_scale("sum", 2.0)
        outputs["scaled"] = model(x)
        outputs["weight"] = layers(model)[0].weight
        outputs["change"] = layers(model)[0].get_delta_weight("b")
    outputs["plain"] = model.merge_and_unload()(x)
    return list(outputs.values())


@pytest.mark.parametrize("kind", INPUTS)
def test_every_state_of_an_adapter(gpu, kind):
    assert_equal_there(switched, with_adapters(kind, "default", "b"), batch(kind), gpu)


@pytest.mark.parametrize("kind", ["MLP", "Upscaler"])
@pytest.mark.parametrize("expansion", ["pairs", "gradient"])
def test_every_state_of_an_expanded_adapter(gpu, kind, expansion):
    assert_equal_there(switched, expanded(kind, "default", "b", expansion=expansion), batch(kind), gpu)


@pytest.mark.parametrize("expansion", ["pairs", "gradient", "random"])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_directions_of_an_expansion_are_chosen_as_on_the_cpu(gpu, kind, expansion):
    def run(model, x):
        passes = [lambda model, row=row: model(x[row : row + 2]).square().mean() for row in (0, 2)]
        for more in (False, True):
            report = initialize_expansion(model, passes, show=False, more=more)
        stir(model)
        directions = (layer.terms_of_expansion("default") for layer in layers(model))
        shares.append([row.terms for row in report.layers] + [row.share or 0.0 for row in report.layers])
        return [tensor for factors in directions for tensor in factors]

    shares: list[list] = []
    choices = {"expansion": expansion, "expansion_rank": 1, "parametrization": "relative"}
    model = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=TARGETS[kind], **choices))
    assert_equal_there(run, model, batch(kind), gpu)
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)


def test_a_projection_goes_on_from_the_device(gpu):
    model = with_adapters("ConvNet", "default", targets=["neck.0"])
    (layer,) = layers(model)
    layer.takes_projection = True
    here = layer(torch.ones(1, 6, 2, 2))
    assert_same(model.to(gpu) and layer(torch.ones(1, 6, 2, 2, device=gpu)), here)
    assert_same(layer.projection(), layer.bases.vh.cpu())


@pytest.mark.parametrize("choices", [{}, {"expansion": "gradient", "expansion_rank": 2}, {"save_basis": True}], ids=str)
def test_what_is_saved_on_the_device_is_loaded_there_and_elsewhere(gpu, tmp_path, choices):
    model = expanded("MLP", **choices) if "expansion" in choices else with_adapters("MLP", "default", **choices)
    expected = output(model, batch("MLP"))
    model.to(gpu).save_pretrained(tmp_path)
    loaded = [PeftModel.from_pretrained(make("MLP").to(device), tmp_path) for device in (gpu, "cpu")]
    assert_same(output(loaded[0], batch("MLP").to(gpu)), expected)
    assert torch.equal(output(loaded[1], batch("MLP")), expected)


def test_a_weight_written_to_on_the_device_is_followed(gpu):
    model, other = with_adapters("MLP", "default").to(gpu), make("MLP", seed=5)
    (first, _), x = layers(model), batch("MLP")
    model(x.to(gpu))
    first.base_layer.weight.data.copy_(other.lin0.weight.data.to(gpu))
    model(x.to(gpu))
    assert_same(first.bases.p, torch.linalg.svdvals(other.lin0.weight.double()).float().detach())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor + 0.1 * ("base_layer.weight" in name) for name, tensor in state.items()})
    assert all(tensor.device.type == "cuda" for layer in layers(model) for tensor in layer.bases)


def test_a_model_that_comes_back_has_nothing_left_on_the_device(gpu):
    model = expanded("MLP", "default", "b", expansion="gradient")
    expected, x = model(batch("MLP")), batch("MLP")
    model.to(gpu)(x.to(gpu))
    assert torch.equal(model.to("cpu")(x), expected)


def test_bases_that_stay_behind_are_seen(gpu, monkeypatch):
    model = with_adapters("MLP", "default").train()
    monkeypatch.setattr("samparser.tuner.layer.SVDCoefficientLayer._move_state", lambda layer, device: None)
    with pytest.raises((MixedDevicesError, RuntimeError), match=r"cuda:0 and on cpu|same device"):
        step(model.to(gpu), batch("MLP").to(gpu))
