"""What an expansion refuses: passes, choices and files that cannot be, each named, and nothing changed."""

import json
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model

from samparser import SVDCoefficientConfig, initialize_expansion
from tests.tuner.expanded import KINDS, batches, expanded, waiting
from tests.tuner.models import batch, layers, make, output, train


@pytest.mark.parametrize(
    ("choices", "given", "message"),
    [
        ({"expansion_rank": 91}, {}, r"Cannot choose the directions of lin0: expansion_rank is 91, but it allows 90"),
        ({"expansion": "gradient", "expansion_rank": 11}, {}, "lin0: expansion_rank is 11, but it allows 10 terms"),
        ({"expansion": "random", "expansion_rank": {"lin1": 6}}, {}, "lin1: expansion_rank is 6, but it allows 5"),
        ({}, {"adapter_name": "x"}, r"The model has no SVD coefficient adapter 'x'; it has \['default'\]"),
        (
            {"expansion": None, "expansion_rank": None},
            {},
            "Adapter 'default' has no expansion to choose",
        ),
        ({}, {"batches": []}, "there is 0: give at least two batches, or some as held_out"),
        ({}, {"batches": batches("MLP", 1)}, "there is 1: give at least two"),
        ({}, {"batches": [], "held_out": batches("MLP")}, "There is no batch to choose directions by"),
        ({}, {"held_out": []}, "There is no batch to measure the choice on"),
        ({}, {"max_batches": 0}, "max_batches=0 has to be at least 1"),
        ({}, {"loss": lambda model, b: b(model) * 0}, "lin0: its mean gradient is zero everywhere: the loss does not"),
        ({}, {"loss": lambda model, b: b(model) * float("inf")}, r"lin0: 120 of the 120 values .* NaN or infinite"),
        ({}, {"loss": lambda model, b: b(model).detach()}, "does not depend on any adapted layer, or was computed wit"),
        ({}, {"loss": lambda model, b: None}, "The loss of a batch has to be one number, but it is None"),
        ({}, {"loss": lambda model, b: b(model).expand(3)}, r"but it is a tensor of shape \(3,\)"),
    ],
)
def test_what_cannot_be_done_is_named_and_changes_nothing(choices, given, message):
    model = waiting(**choices)
    with pytest.raises(ValueError, match=message):
        initialize_expansion(model, **{"batches": batches("MLP"), "show": False, **given})
    assert all(layer.states["default"].expansion is None for layer in layers(model))
    assert all(layer.gradient_probe is None for layer in layers(model))


def test_where_no_layer_has_a_term_to_choose_that_is_said():
    net = torch.nn.ModuleDict({"layer": torch.nn.Linear(6, 4)})
    torch.nn.init.orthogonal_(net["layer"].weight)
    with pytest.warns(UserWarning, match=r"Few coefficients can change by themselves in layer \(1 of 4\)"):
        model = get_peft_model(net, SVDCoefficientConfig(target_modules=["layer"], expansion="pairs"))
    with pytest.raises(ValueError, match=r"No term can be chosen for adapter 'default': .* Use expansion='gradient'"):
        initialize_expansion(model, [torch.randn(3, 6)] * 2, lambda model, x: layers(model)[0](x).square().mean())
    assert layers(model)[0].states["default"].awaits


def test_a_batch_of_another_kind_is_named():
    with pytest.raises(TypeError, match="A batch is a Tensor: without `loss` it has to be keyword arguments"):
        initialize_expansion(waiting(), [batch("MLP")] * 2, show=False)


def test_merged_disabled_projected_and_empty_layers_are_named():
    model = waiting()
    model.merge_adapter()
    with pytest.raises(ValueError, match="lin0 has merged adapters: unmerge or enable them"):
        initialize_expansion(model, batches("MLP"), show=False)
    model.unmerge_adapter()
    with model.disable_adapter(), pytest.raises(ValueError, match="lin0 has its adapters disabled"):
        initialize_expansion(model, batches("MLP"), show=False)
    layers(model)[0].takes_projection = True
    with pytest.raises(ValueError, match="lin0 takes a projection of its input, from a cache of features"):
        initialize_expansion(model, batches("MLP"), show=False)
    with torch.device("meta"):
        plain = make("MLP")
    config = SVDCoefficientConfig(target_modules=["lin0"], expansion="pairs", expansion_rank=1)
    with pytest.raises(ValueError, match="lin0 has no values yet"):
        initialize_expansion(get_peft_model(plain, config), batches("MLP"), show=False)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"expansion_rank": 4}, "expansion_rank=4 is about the terms of an expansion, but there is none"),
        ({"expansion_dtype": "float16"}, "expansion_dtype='float16' is about the terms"),
        ({"trainable": "expansion"}, "trainable='expansion' is about the terms"),
        ({"expansion_record": {"lin0": {}}}, "expansion_record=.* is about the terms"),
        ({"expansion": "all"}, "expansion='all' is not possible; it has to be None or one of 'pairs', 'gradient', '"),
        ({"expansion": "mixed"}, "expansion='mixed' is what a sum of adapters has; choose 'pairs'"),
        ({"expansion": "pairs", "expansion_rank": 0}, "expansion_rank=0 has to be a whole number of at least 1"),
        ({"expansion": "pairs", "expansion_rank": {}}, "expansion_rank is an empty dictionary"),
        ({"expansion": "pairs", "expansion_rank": {"a": 0}}, r"expansion_rank\['a'\]=0 has to be"),
        ({"expansion": "pairs", "expansion_rank": {"(": 1}}, r"expansion_rank='\(' is a string and so a regular"),
        ({"expansion": "pairs", "expansion_rank": "4"}, "expansion_rank='4' is not possible"),
        ({"expansion": "pairs", "expansion_dtype": "int8"}, "expansion_dtype='int8' is not possible; choose one of"),
        ({"expansion": "pairs", "trainable": "both"}, "trainable='both' trains the bases"),
        ({"expansion": "pairs", "save_basis": True}, "does not go with save_basis=True"),
        ({"top": 0}, "top=0 has to be a share above 0"),
        ({"top": 1.5}, "top=1.5 has to be a share above 0"),
        ({"top": 0.5, "rank": 3}, "rank=3 and top=0.5 both say"),
        ({"top": 0.5, "trainable": "bases"}, "top=0.5 says how many coefficients train, but trainable='bases'"),
        ({"trainable": "bases", "parametrization": "offset"}, "parametrization='offset' says how coefficients"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        SVDCoefficientConfig(**choices)


def test_a_pattern_that_names_no_layer_is_refused_before_anything_is_replaced():
    model = make("MLP")
    config = SVDCoefficientConfig(target_modules=["lin0"], expansion="pairs", expansion_rank={"lin0": 1, "lin7": 2})
    with pytest.raises(ValueError, match=r"expansion_rank names 'lin7', which is no layer that is adapted; .* lin0"):
        get_peft_model(model, config)
    assert not layers(model)


# Files


def edited(folder, change):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config["expansion_record"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda record: record["lin0"].update(pairs="0,1"),
            r"_c has shape \(2,\), but \(1,\) is needed",
        ),
        (lambda record: record["lin0"].update(pairs="0,1 0,77"), "lin0.*pairs base 77, but the layer has 10 bases"),
        (lambda record: record["lin0"].update(scale="x"), "lin0: the adapter's expansion_record has scale='x'"),
        (lambda record: record["lin0"].update(stored=1), "svd_coefficient_a"),
        (lambda record: record.pop("lin0"), "svd_coefficient_c, which the configuration does not know"),
        (lambda record: record.update(lin9=record["lin0"]), "has terms for lin9 in its expansion_record, and no such"),
    ],
)
def test_a_record_of_terms_that_does_not_fit_is_refused_and_the_model_left_alone(change, message, tmp_path):
    expanded("MLP").save_pretrained(tmp_path)
    edited(tmp_path, change)
    model = make("MLP")
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path)
    assert not layers(model)


@pytest.mark.parametrize("expansion", KINDS)
def test_another_base_is_refused_and_taken_when_told_to(expansion, tmp_path):
    expanded("MLP", expansion=expansion).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lin0: this base weight is not the one the adapter was trained on"):
        PeftModel.from_pretrained(make("MLP", seed=9), tmp_path)
    config = SVDCoefficientConfig.from_pretrained(tmp_path)
    config.base_check = "warn"
    with pytest.warns(UserWarning, match="is not the one the adapter was trained on"):
        loaded = PeftModel.from_pretrained(make("MLP", seed=9), tmp_path, config=config)
    assert layers(loaded)[0].states["default"].expansion.count == 2


def test_an_adapter_that_was_loaded_trains_on(tmp_path):
    expanded("MLP").save_pretrained(tmp_path)
    loaded, x = PeftModel.from_pretrained(make("MLP"), tmp_path, is_trainable=True), batch("MLP")
    before = output(loaded, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(loaded, x)
    assert output(loaded, x).square().mean() < before.square().mean()
