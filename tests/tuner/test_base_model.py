"""The base model an adapter is loaded on: the one it was trained on, or told apart."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from samparser import SVDCoefficientConfig
from samparser.tuner import coefficients
from tests.tuner.models import batch, layers, make, move, output, saved


def test_another_base_model_is_refused_naming_every_layer_and_the_difference(tmp_path):
    folder, other = saved(tmp_path), make("ConvNet", seed=7)
    with pytest.raises(ValueError) as caught:
        PeftModel.from_pretrained(other, folder)
    text = str(caught.value)
    assert "head: this base weight is not the one the adapter was trained on: p0 differs by" in text
    assert "Also different: neck.0 (p0 by " in text
    assert "neck.2 (p0 by " in text
    assert "base_check to 'warn'" in text
    assert all(not hasattr(module, "svd_coefficient_p") for module in other.modules())


def test_a_single_changed_layer_is_found(tmp_path):
    folder, other = saved(tmp_path), make("ConvNet")
    with torch.no_grad():
        other.neck[2].weight[0, 0, 0, 0] += 0.01
    with pytest.raises(ValueError, match=r"does not fit this base model. neck.2: this base weight"):
        PeftModel.from_pretrained(other, folder)


def test_going_on_with_another_base_model_is_possible_when_said_so(tmp_path):
    folder, other = saved(tmp_path), make("ConvNet", seed=7)
    config = SVDCoefficientConfig.from_pretrained(folder)
    config.base_check = "warn"
    with pytest.warns(UserWarning, match="head: this base weight is not the one"):
        model = PeftModel.from_pretrained(other, folder, config=config)
    # The change of the coefficients goes over, not their values.
    trained = coefficients(PeftModel.from_pretrained(make("ConvNet"), folder))
    for name, (p0, p) in coefficients(model).items():
        torch.testing.assert_close(p - p0, trained[name][1] - trained[name][0])
    # Saved again, it remembers the new base and the same change.
    model.save_pretrained(tmp_path / "again")
    x = batch("ConvNet")
    again = PeftModel.from_pretrained(make("ConvNet", seed=7), tmp_path / "again")
    assert torch.equal(output(again, x), output(model, x))
    with pytest.raises(ValueError, match="does not fit"):
        PeftModel.from_pretrained(make("ConvNet"), tmp_path / "again")


def test_another_size_of_model_is_refused_even_when_told_to_go_on(tmp_path):
    folder = saved(tmp_path, "MLP")
    other = make("MLP")
    other.lin0 = nn.Linear(10, 14)
    config = SVDCoefficientConfig.from_pretrained(folder)
    config.base_check = "warn"
    with pytest.raises(
        ValueError, match=r"lin0: the adapter was trained on a weight of shape \(12, 10\).*has \(14, 10\)"
    ):
        PeftModel.from_pretrained(other, folder, config=config)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_an_adapter_of_a_rounded_base_is_exact_on_the_unrounded_one(low, tmp_path):
    model = get_peft_model(make("ConvNet").to(low), SVDCoefficientConfig(target_modules=["neck"]))
    move(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("ConvNet"), tmp_path)
    for ours, theirs in zip(layers(loaded), layers(model), strict=True):
        assert torch.equal(ours.get_delta_weight("default"), theirs.get_delta_weight("default"))
    loaded.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make("ConvNet").to(low), tmp_path / "again")
    for ours, theirs in zip(layers(again), layers(model), strict=True):
        assert torch.equal(ours.get_delta_weight("default"), theirs.get_delta_weight("default"))


def test_a_base_that_was_rounded_since_is_accepted_with_the_expected_error(tmp_path):
    folder = saved(tmp_path)
    with pytest.warns(UserWarning, match=r"holds it rounded to bfloat16.*be off by"):
        loaded = PeftModel.from_pretrained(make("ConvNet").bfloat16(), folder)
    exact = PeftModel.from_pretrained(make("ConvNet"), folder)
    for ours, theirs in zip(layers(loaded), layers(exact), strict=True):
        change = theirs.get_delta_weight("default")
        assert (ours.get_delta_weight("default") - change).norm() < 0.1 * change.norm()


def test_two_adapters_of_different_roundings_share_the_bases_of_the_first_with_a_warning(tmp_path):
    rounded = get_peft_model(make("MLP").bfloat16(), SVDCoefficientConfig(target_modules=["lin0", "lin1"]))
    move(rounded)
    rounded.save_pretrained(tmp_path / "rounded")
    exact = saved(tmp_path, "MLP")
    model = PeftModel.from_pretrained(make("MLP"), exact, adapter_name="exact")
    with pytest.warns(UserWarning, match="trained on this weight rounded to bfloat16"):
        model.load_adapter(tmp_path / "rounded", "rounded")
    model = PeftModel.from_pretrained(make("MLP"), tmp_path / "rounded", adapter_name="rounded")
    with pytest.warns(UserWarning, match=r"another adapter of this layer was trained on its weight rounded"):
        model.load_adapter(exact, "exact")


@pytest.mark.parametrize(
    "weight", [torch.eye(6), torch.ones(6, 6), torch.zeros(6, 6)], ids=["equal", "rank one", "zero"]
)
@pytest.mark.filterwarnings("ignore:Few coefficients:UserWarning")
def test_hard_spectra_survive_saving_and_loading(weight, tmp_path):
    def plain() -> nn.Module:
        model = nn.ModuleDict({"x": nn.Linear(6, 6, bias=False)})
        with torch.no_grad():
            model["x"].weight.copy_(weight)
        return model

    model = get_peft_model(plain(), SVDCoefficientConfig(target_modules=["x"]))
    move(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(plain(), tmp_path)
    torch.testing.assert_close(layers(loaded)[0].weight, layers(model)[0].weight, rtol=1e-5, atol=1e-6)


def test_coefficients_of_equal_singular_values_move_together_and_those_of_zeros_not_at_all():
    weight = torch.diag(torch.tensor([3.0, 2.0, 2.0, 2.0, 0.0, 0.0]))
    plain = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        plain.weight.copy_(weight)
    with pytest.warns(UserWarning, match=r"by themselves in x \(2 of 6\)"):
        model = get_peft_model(nn.ModuleDict({"x": plain}), SVDCoefficientConfig(target_modules=["x"]))
    (layer,) = layers(model)
    with torch.no_grad():
        layer.svd_coefficient_p["default"].add_(torch.tensor([1.0, 0.3, 0.6, 0.9, 5.0, 7.0]))
    torch.testing.assert_close(layer.weight, weight + torch.diag(torch.tensor([1.0, 0.6, 0.6, 0.6, 0.0, 0.0])))
    # Bases that are saved need no such care.
    free = get_peft_model(nn.ModuleDict({"x": plain}), SVDCoefficientConfig(target_modules=["x"], save_basis=True))
    (layer,) = layers(free)
    with torch.no_grad():
        layer.svd_coefficient_p["default"].add_(torch.tensor([0.0, 0.3, 0.6, 0.9, 5.0, 7.0]))
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default")) == 5


# The base weight is exchanged after the layer was adapted


def copy_by_hand(target: nn.Module, source: nn.Module) -> None:
    """Write all values of one model into another as many a moving average does, which no parameter notices."""
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        ours.data.copy_(theirs.data)


@pytest.mark.parametrize("when", ["eval", "forward", "train", "merge", "save"])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"parametrization": "relative"},
        {"trainable": "both"},
        {"trainable": "bases"},
        {"save_basis": True},
        {"rank": 3},
    ],
    ids=str,
)
def test_values_that_are_copied_by_hand_bring_their_bases_along(choices, when, tmp_path):
    config = {"target_modules": ["neck", "head"], **choices}
    trained = get_peft_model(make("ConvNet"), SVDCoefficientConfig(**config))
    other, x = get_peft_model(make("ConvNet", seed=7), SVDCoefficientConfig(**config)), batch("ConvNet")
    move(trained)
    expected = output(trained, x)
    other.eval()
    output(other, x)  # Whatever is kept from before has to go.
    copy_by_hand(other, trained)
    if when == "train":
        other.train()
        torch.testing.assert_close(other(x), expected)
    elif when == "forward":
        with torch.no_grad():
            assert torch.equal(other(x), expected)
    elif when == "merge":
        torch.testing.assert_close(output(other.merge_and_unload(), x), expected)
    elif when == "save":
        other.save_pretrained(tmp_path)
        assert torch.equal(output(PeftModel.from_pretrained(make("ConvNet"), tmp_path), x), expected)
    else:
        assert torch.equal(output(other, x), expected)


def test_an_untrained_adapter_starts_at_a_base_weight_that_is_written_by_hand():
    model, plain, x = (
        get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"])),
        make("MLP", 7),
        batch("MLP"),
    )
    copied = {name: p for name, p in model.named_parameters() if "svd_coefficient" not in name}
    for ours, theirs in zip(copied.values(), plain.parameters(), strict=True):
        ours.data.copy_(theirs.data)
    assert torch.equal(output(model, x), output(plain, x))
    p0, p = coefficients(model)["lin0"]
    assert torch.equal(p0, p)
    torch.testing.assert_close(p, torch.linalg.svdvals(plain.lin0.weight.detach()))


def test_a_trained_adapter_keeps_its_change_on_a_base_weight_that_is_written_by_hand():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]))
    move(model)
    model.eval()
    p0, p = coefficients(model)["lin0"]
    layers(model)[0].base_layer.weight.data.copy_(3 * make("MLP", seed=7).lin0.weight.data)
    model.eval()
    now0, now = coefficients(model)["lin0"]
    assert torch.equal(now0, p0)  # From where its change counts, which is the same and goes along the new bases.
    assert torch.equal(now, p)
    torch.testing.assert_close(
        layers(model)[0].get_delta_weight("default").norm(), (p - p0).norm(), rtol=1e-5, atol=1e-6
    )


def test_last_bits_of_a_moving_average_are_no_other_weight():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]))
    bases, weight = layers(model)[0].bases, layers(model)[0].base_layer.weight
    for _ in range(50):
        weight.data.mul_(0.99).add_(weight.data / 0.99, alpha=0.01)
        model.eval()
    assert layers(model)[0].bases is bases


# Parts that torch.compile wraps


def compiled(model: nn.Module, part: str) -> nn.Module:
    setattr(model, part, torch.compile(getattr(model, part), backend="eager"))
    assert any("._orig_mod." in name for name in model.state_dict())
    return model


@pytest.fixture
def names_only():
    """Let compiled modules run as they are: no compiler looks through the checks of shapes of the test run."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("choices", [{}, {"modules_to_save": ["head"]}, {"bias": "all"}], ids=str)
@pytest.mark.usefixtures("names_only")
def test_a_compiled_part_leaves_no_trace_in_the_file(choices, when, tmp_path):
    model = compiled(make("ConvNet"), "neck") if when == "before" else make("ConvNet")
    model = get_peft_model(model, SVDCoefficientConfig(target_modules=["neck.0"], **choices))
    if when == "after":
        compiled(model.base_model.model, "neck")
    move(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    assert "_orig_mod" not in (tmp_path / "adapter_config.json").read_text()
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    x = batch("ConvNet")
    for base in (make("ConvNet"), compiled(make("ConvNet"), "neck")):
        torch.testing.assert_close(output(PeftModel.from_pretrained(base, tmp_path), x), output(model, x))


@pytest.mark.usefixtures("names_only")
def test_a_file_with_names_of_a_compiled_part_still_loads(tmp_path):
    folder, part = saved(tmp_path), "neck._orig_mod."
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({name.replace("neck.", part): t for name, t in load_file(path).items()}, path)
    config.write_text(config.read_text().replace('    "neck.', f'    "{part}'))
    assert part in config.read_text()
    whole = saved(tmp_path / "whole")
    for base in (make("ConvNet"), compiled(make("ConvNet"), "neck")):
        ours = output(PeftModel.from_pretrained(base, folder), batch("ConvNet"))
        assert torch.equal(ours, output(PeftModel.from_pretrained(make("ConvNet"), whole), batch("ConvNet")))


def test_a_module_in_full_that_is_compiled_here_says_how_to_load_it(tmp_path):
    folder = saved(tmp_path, modules_to_save=["bottleneck"])
    with pytest.raises(ValueError, match=r"bottleneck\._orig_mod.*load into the plain model, then compile it in place"):
        PeftModel.from_pretrained(compiled(make("ConvNet"), "bottleneck"), folder)
