"""Adapters of one model: scaled, switched, disabled, deleted, read."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

from samparser import SVDCoefficientConfig
from samparser.tuner import coefficient_parameters, coefficients
from tests.tuner.models import INPUTS, batch, layers, make, move, output, trained_names, with_adapters

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


@pytest.mark.parametrize("modules_to_save", [None, ["lin1"]])
def test_without_its_last_adapter_a_model_computes_as_the_base_model_and_comes_apart_as_with_lora(modules_to_save):
    x = batch("MLP")
    plain = output(make("MLP"), x)
    for config in (
        SVDCoefficientConfig(target_modules=["lin0"], modules_to_save=modules_to_save),
        LoraConfig(target_modules=["lin0"], modules_to_save=modules_to_save),
    ):
        model = get_peft_model(make("MLP"), config)
        model.delete_adapter("default")
        assert torch.equal(output(model.base_model, x), plain)
        # PeftModel looks up the configuration of its active adapter in every pass and has none any more.
        with pytest.raises(KeyError, match="default"):
            model(x)
        assert model.get_nb_trainable_parameters()[0] == 0
        model.merge_adapter()
        unloaded = model.unload()
        assert [type(module) for module in unloaded.modules()] == [type(module) for module in make("MLP").modules()]
        assert torch.equal(output(unloaded, x), plain)


def test_an_adapter_can_follow_the_one_that_was_deleted_last():
    model, x = with_adapters("MLP", "a"), batch("MLP")
    model.delete_adapter("a")
    model.add_adapter("b", SVDCoefficientConfig(target_modules=["lin0"]))
    model.set_adapter("b")
    assert trained_names(model) == {"base_model.model.lin0.svd_coefficient_p.b"}
    assert torch.equal(output(model, x), output(make("MLP"), x))
    move(model, "b")
    assert not torch.allclose(output(model, x), output(make("MLP"), x))


def test_modules_to_save_follow_their_adapter_when_it_is_switched_disabled_and_deleted():
    config = {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}
    model, x = get_peft_model(make("MLP"), SVDCoefficientConfig(**config), "a"), batch("MLP")
    model.add_adapter("b", SVDCoefficientConfig(**config))
    wrapper, outputs = model.base_model.model.lin1, {}
    for seed, name in enumerate("ab"):
        model.set_adapter(name)
        move(model, name, seed=seed)
        with torch.no_grad():
            wrapper.modules_to_save[name].weight.mul_(2 + seed)
        parts = {f"lin0.svd_coefficient_p.{name}", f"lin1.modules_to_save.{name}.weight"}
        assert trained_names(model) == {f"base_model.model.{part}" for part in parts}
        outputs[name] = output(model, x)
    model.set_adapter("a")
    assert torch.equal(output(model, x), outputs["a"])
    with model.disable_adapter():
        assert torch.equal(output(model, x), output(make("MLP"), x))
    with pytest.raises(ValueError, match="Only one adapter can be set at a time for ModulesToSave"):
        model.base_model.set_adapter(["a", "b"])
    model.set_adapter("a")
    mixed = output(model, x, adapter_names=["a", "__base__", "b", "b"])
    expected = [outputs["a"][:1], output(make("MLP"), x)[1:2], outputs["b"][2:]]
    torch.testing.assert_close(mixed, torch.cat(expected), rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="Setting active adapter to b"):
        model.delete_adapter("a")
    assert list(wrapper.modules_to_save) == ["b"]
    assert torch.equal(output(model, x), outputs["b"])


def test_names_that_exist_or_do_not_are_told_and_nothing_changes():
    model = with_adapters("MLP", "a", "b")
    names = {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match=r"a.? already exists"):
        model.add_adapter("a", SVDCoefficientConfig(target_modules=["lin0"]))
    with pytest.raises(ValueError, match="Adapter z not found"):
        model.set_adapter("z")
    model.set_requires_grad("z")  # As with LoRA: a layer need not have every adapter.
    assert {name for name, _ in model.named_parameters()} == names
    assert model.active_adapters == ["a"]


def test_stacking_on_another_method_and_mixing_with_one_are_refused():
    lora = get_peft_model(make("MLP"), LoraConfig(target_modules=["lin0"]))
    with pytest.raises(TypeError, match=r"it already carries another adapter \(peft.tuners.lora"):
        inject_adapter_in_model(SVDCoefficientConfig(target_modules=["lin0"]), lora.base_model.model)
    with pytest.raises(ValueError, match=r"SVD_COEFFICIENT.* is not compatible"):
        get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]), mixed=True)


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
