"""Adapters of one model: scaled, switched, disabled, deleted, read."""

import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.tuner import coefficient_parameters, coefficients
from tests.tuner.models import INPUTS, batch, layers, make, output, trained_names, with_adapters

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_scaling_follows_loras_names():
    model, x = with_adapters("MLP", "a", scaling=2.0), batch("MLP")
    layer = layers(model)[0]
    assert layer.scaling == {"a": 2.0}
    layer.set_scale("a", 3)
    assert layer.scaling == {"a": 6.0}
    layer.scale_layer(0.5)
    assert layer.scaling == {"a": 3.0}
    layer.unscale_layer(3)
    assert layer.scaling == {"a": 1.0}
    layer.unscale_layer()
    assert layer.scaling == {"a": 2.0}
    model.set_scale("a", 0)
    with model.disable_adapter():
        plain = output(model, x)
    assert torch.equal(output(model, x), plain)
    with pytest.raises(ValueError, match="Adapter z does not exist; there are a"):
        model.set_scale("z", 1)


def test_switching_adapters_trains_the_active_one_only():
    model = with_adapters("MLP", "a", "b")
    for active in ("b", "a"):
        model.set_adapter(active)
        assert trained_names(model) == {f"base_model.model.{n}.svd_coefficient_p.{active}" for n in ("lin0", "lin1")}
    model.set_adapter("b", inference_mode=True)
    assert trained_names(model) == set()
    model.set_requires_grad("a")
    assert trained_names(model) == {f"base_model.model.{n}.svd_coefficient_p.a" for n in ("lin0", "lin1")}


def test_saved_bases_stay_frozen_whatever_is_switched():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], save_basis=True))
    expected = {"base_model.model.lin0.svd_coefficient_p.default"}
    model.set_requires_grad("default")
    assert trained_names(model) == expected
    with model.disable_adapter():
        assert trained_names(model) == set()
    assert trained_names(model) == expected
    model.set_adapter("default")
    assert trained_names(model) == expected


@pytest.mark.parametrize("kind", INPUTS)
def test_disabling_gives_the_base_model_bit_for_bit_also_nested_in_training(kind):
    x = batch(kind)
    plain = output(make(kind), x)
    model = with_adapters(kind, "a")
    model.train()
    names = trained_names(model)
    tuned = model(x)
    with model.disable_adapter():
        assert trained_names(model) == set()
        with model.disable_adapter(), torch.no_grad():
            assert torch.equal(model.eval()(x), plain)
        assert trained_names(model) == set()
    assert trained_names(model) == names
    tuned.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in names)


def test_enabling_gives_back_what_required_a_gradient_before():
    model = with_adapters("MLP", "a", "b")
    model.set_adapter("a", inference_mode=True)
    with model.disable_adapter():
        pass
    assert trained_names(model) == set()


def test_deleting_an_inactive_the_active_and_the_last_adapter_leaves_a_working_model():
    x = batch("MLP")
    plain = output(make("MLP"), x)
    model = with_adapters("MLP", "a", "b", "k")
    tuned = output(model, x)
    model.delete_adapter("b")
    assert torch.equal(output(model, x), tuned)
    with pytest.warns(UserWarning, match="Adapter a was active which is now deleted. Setting active adapter to k"):
        model.delete_adapter("a")
    assert model.active_adapters == ["k"]
    assert not torch.allclose(output(model, x), tuned)
    model.delete_adapter("k")
    for layer in layers(model):
        assert not layer.states
        assert not layer.scaling
        assert not list(layer.parameters_of_adapters())
    # PeftModel itself looks its active adapter up in every forward pass and has none any more.
    assert torch.equal(output(model.base_model, x), plain)
    with pytest.raises(ValueError, match="Adapter k does not exist"):
        model.delete_adapter("k")


def test_a_merged_adapter_is_not_deleted():
    model = with_adapters("MLP", "a", "b")
    model.merge_adapter(["a"])
    with pytest.raises(ValueError, match=r"Cannot delete adapter\(s\) \['a'\] while they are merged"):
        model.delete_adapter("a")


def test_only_one_adapter_may_train_biases():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], bias="all"))
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("b", SVDCoefficientConfig(target_modules=["lin0"], bias="all"))


def test_the_spectra_are_the_singular_values_before_and_after():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], parametrization="relative"))
    before = torch.linalg.svdvals(make("MLP").lin0.weight)
    with torch.no_grad():
        layers(model)[0].svd_coefficient_d["default"].fill_(0.5)
    ((name, (p0, p)),) = coefficients(model).items()
    assert name == "lin0"
    torch.testing.assert_close(p0, before)
    torch.testing.assert_close(p, 1.5 * before)
    with pytest.raises(ValueError, match=r"no SVD coefficient adapter 'x'; it has \['default'\]"):
        coefficients(model, "x")


def test_the_coefficients_are_found_among_all_parameters():
    config = SVDCoefficientConfig(target_modules=["lin0"], modules_to_save=["lin1"], trainable="both")
    model = get_peft_model(make("MLP"), config)
    found = dict(coefficient_parameters(model))
    assert list(found) == ["base_model.model.lin0.svd_coefficient_p.default"]
    assert found.items() <= dict(model.named_parameters()).items()
