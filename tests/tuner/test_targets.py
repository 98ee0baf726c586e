"""Which layers are adapted for what a user names."""

import pytest
import torch
from peft import LoraConfig, NoMatchingPeftModuleError, get_peft_model, inject_adapter_in_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from samparser import SVDCoefficientConfig
from tests.tuner.models import MODELS, make, unchanged


def targeted(model: nn.Module, targets, **choices) -> list[str]:
    tuned = get_peft_model(model, SVDCoefficientConfig(target_modules=targets, **choices))
    return sorted(tuned.targeted_module_names)


@pytest.mark.parametrize(
    ("kind", "targets", "expected"),
    [
        ("ConvNet", ["neck"], ["neck.0", "neck.2"]),  # not the layer called bottleneck
        ("ConvNet", ["neck", "head"], ["head", "neck.0", "neck.2"]),
        ("ConvNet", ["neck.0"], ["neck.0"]),
        ("ConvNet", "neck", ["neck.0", "neck.2"]),
        ("ConvNet", r".*neck", ["bottleneck", "neck.0", "neck.2"]),
        ("ConvNet", r"neck\.\d", ["neck.0", "neck.2"]),
        ("ConvNet", "all-linear", ["head"]),
        ("Mixed", "all-linear", ["conv1d", "lin"]),
        ("Mixed", "All-Linear", ["conv1d", "lin"]),
        ("Blocks", ["q"], ["layers.0.q", "layers.1.q", "layers.2.q"]),
        ("Blocks", ["layers.1"], ["layers.1.q", "layers.1.v"]),
        ("MLP", r".*", ["lin0", "lin1"]),
    ],
)
def test_names_containers_patterns_and_all_linear_reach_their_layers(kind, targets, expected):
    assert targeted(make(kind), targets) == expected


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"layers_to_transform": 1}, ["layers.1.q", "layers.1.v"]),
        (
            {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
            ["layers.0.q", "layers.0.v", "layers.2.q", "layers.2.v"],
        ),
        ({"layers_to_transform": [0], "layers_pattern": ["blocks", "layers"]}, ["layers.0.q", "layers.0.v"]),
        ({"exclude_modules": ["v"]}, ["layers.0.q", "layers.1.q", "layers.2.q"]),
        ({"exclude_modules": ["layers.0", "layers.1"]}, ["layers.2.q", "layers.2.v"]),
        ({"exclude_modules": r"layers\.[01].*"}, ["layers.2.q", "layers.2.v"]),
        ({"exclude_modules": r"layers\.[01]"}, ["layers.2.q", "layers.2.v"]),
        (
            {"modules_to_save": ["layers.2.q"]},
            ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v", "layers.2.v"],
        ),
    ],
)
def test_choices_narrow_the_targets_down(choices, expected):
    assert targeted(make("Blocks"), ["q", "v"], **choices) == expected


def test_the_full_names_are_written_back_and_give_the_same_layers_again():
    config = SVDCoefficientConfig(target_modules=["layers"], layers_to_transform=[1], exclude_modules=["v"])
    get_peft_model(make("Blocks"), config)
    assert config.target_modules == {"layers.1.q"}
    assert sorted(get_peft_model(make("Blocks"), config).targeted_module_names) == ["layers.1.q"]


def test_more_targets_than_peft_keeps_by_name_still_mean_the_same_layers():
    def deep() -> nn.Module:
        return nn.ModuleDict(
            {f"block{i}": nn.ModuleDict({"fc": nn.Linear(3, 3), "no": nn.Linear(3, 3)}) for i in range(30)}
        )

    config = SVDCoefficientConfig(target_modules=["fc"])
    names = sorted(get_peft_model(deep(), config).targeted_module_names)
    assert len(names) == 30
    assert sorted(get_peft_model(deep(), config).targeted_module_names) == names


@pytest.mark.parametrize(
    ("kind", "targets", "error", "message"),
    [
        ("ConvNet", ["nek"], ValueError, r"'nek', but no module.*Did you mean 'neck'"),
        ("ConvNet", ["neck", "typo"], ValueError, "names 'typo'"),
        ("ConvNet", "nek.*", ValueError, r"'nek.\*' is not the whole name of any module"),
        ("MLP", ["norm"], TypeError, r"names 'norm'.*LayerNorm.*nn.Linear, nn.Conv2d"),
        ("ConvNet", "neck.1", TypeError, "ReLU"),
    ],
)
def test_targets_that_lead_nowhere_are_refused_and_the_model_is_left_alone(kind, targets, error, message):
    model = make(kind)
    before = [type(module) for module in model.modules()]
    with pytest.raises(error, match=message):
        targeted(model, targets)
    assert [type(module) for module in model.modules()] == before


def test_nothing_left_after_exclusion_says_what_took_it():
    with pytest.raises(ValueError, match=r"\['neck'\] leaves no layer.*'exclude_modules': \{'neck'\}"):
        targeted(make("ConvNet"), ["neck"], exclude_modules=["neck"])


def test_a_model_without_a_default_says_which_have_one():
    with pytest.raises(ValueError, match=r"^Please specify `target_modules` in `peft_config`.*type 'custom'.*sam_hq"):
        targeted(make("MLP"), None)


def test_sam_has_its_neck_as_default(tiny_sam):
    assert targeted(tiny_sam, None) == ["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"]


def test_a_dummy_target_adapts_nothing():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=DUMMY_TARGET_MODULES))
    assert model.targeted_module_names == []


class Linear4bit(nn.Linear):
    """Stands for the layer of bitsandbytes, which is a subclass of nn.Linear too."""


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def integer_weight() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: Linear4bit(3, 3), r"quantised layer \(.*Linear4bit\).*without quantisation"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), "parametrisation such as weight_norm"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 3)), "parametrisation such as weight_norm"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 3)), "parametrisation such as weight_norm"),
        (lambda: OwnForward(3, 3), "OwnForward, which computes its output in a way of its own"),
        (integer_weight, "its weight is torch.int8"),
        (lambda: nn.ConvTranspose1d(3, 3, 1), "ConvTranspose1d.*nn.Conv2d, nn.ConvTranspose2d or transformers Conv1D"),
        (lambda: nn.Embedding(3, 3), "Embedding"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
def test_layers_that_cannot_be_adapted_are_refused_by_name(layer, message):
    with pytest.raises(TypeError, match=message):
        targeted(nn.ModuleDict({"layer": layer()}), ["layer"])


def test_a_container_passes_over_what_cannot_be_adapted():
    model = nn.ModuleDict({"box": nn.ModuleDict({"a": nn.Linear(3, 3), "b": Linear4bit(3, 3), "c": nn.LayerNorm(3)})})
    assert targeted(model, ["box"]) == ["box.a"]


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "1 of its 120 values"), (float("inf"), "1 of its 120")])
def test_a_weight_that_is_not_finite_is_refused_with_the_layers_name(value, message):
    model = make("MLP")
    with torch.no_grad():
        model.lin0.weight[3, 2] = value
    with pytest.raises(ValueError, match=f"lin0: Cannot factor.*{message}.*exclude_modules"):
        targeted(model, ["lin0"])
    assert isinstance(model.lin0, nn.Linear)


def test_layers_in_which_few_coefficients_are_free_are_named_with_the_way_out():
    model = nn.ModuleDict({"x": nn.Linear(6, 6), "y": nn.Linear(6, 6)})
    nn.init.orthogonal_(model["y"].weight)
    with pytest.warns(UserWarning, match=r"by themselves in y \(\d of 6\).*save_basis=True"):
        targeted(model, ["x", "y"])


def test_a_second_adapter_may_have_targets_of_its_own_and_all_linear():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"]))
    model.add_adapter("second", SVDCoefficientConfig(target_modules="all-linear"))
    assert sorted(model.peft_config["second"].target_modules) == ["lin0", "lin1"]
    assert sorted(model.base_model.model.lin0.states) == ["default", "second"]


def test_wrong_storage_order_is_corrected_with_a_warning():
    with pytest.warns(UserWarning, match=r"fan_in_fan_out is set to True but the target module is `torch.nn.Linear`"):
        targeted(make("MLP"), ["lin0"], fan_in_fan_out=True)
    assert targeted(nn.ModuleDict({"c": Conv1D(3, 4)}), ["c"], fan_in_fan_out=True) == ["c"]


@pytest.mark.parametrize("kind", MODELS)
def test_layers_show_their_sizes_as_peft_expects(kind):
    model = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=r".*"))
    for name in model.targeted_module_names:
        layer = model.base_model.model.get_submodule(name)
        base = layer.base_layer
        if isinstance(base, (nn.Conv2d, nn.ConvTranspose2d)):
            assert (layer.in_features, layer.out_features, layer.groups) == (
                base.in_channels,
                base.out_channels,
                base.groups,
            )
        elif isinstance(base, Conv1D):
            assert (layer.in_features, layer.out_features) == (base.nx, base.nf)
        else:
            assert (layer.in_features, layer.out_features) == (base.in_features, base.out_features)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (
            {"target_modules": ["nope"]},
            r"Target modules {'nope'} not found in the base model.",
        ),
        (
            {"target_modules": "nope.*"},
            r"Target modules nope\.\* not found in the base model.",
        ),
        (
            {"target_modules": ["q"], "layers_to_transform": [9], "layers_pattern": "layers"},
            r"Target modules {'q'} not found in the base model. .* again. Note: You specified 'layers_to_transform': "
            r"\[9\]. You also specified 'layers_pattern': layers.",
        ),
        (
            {"target_modules": ["q"], "exclude_modules": ".*"},
            "All modules were excluded.",
        ),
        ({"target_modules": ["q"], "exclude_modules": ["q"]}, "No modules were targeted for adaptation. This might be"),
        ({"target_modules": ["q"], "modules_to_save": ["q"]}, "No modules were targeted for adaptation. This might be"),
    ],
)
def test_what_matches_nothing_is_said_in_pefts_words_and_class_and_then_in_ours(choices, sentence):
    model = make("Blocks")
    with pytest.raises(NoMatchingPeftModuleError, match=f"^{sentence}.*(no module of|not the whole|leaves no layer)"):
        get_peft_model(model, SVDCoefficientConfig(**choices))
    unchanged(model, "Blocks")


def test_a_module_that_cannot_be_adapted_is_a_value_error_as_in_peft_and_a_type_error():
    for kind in (ValueError, TypeError):
        with pytest.raises(kind, match=r"^Target module LayerNorm\(.*\) is not supported. .*'norm'"):
            get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["norm"]))


def test_all_linear_leaves_the_heads_out_as_peft_does():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.score = nn.Linear(4, 4), nn.Linear(4, 2)

    for task, names in ((None, {"body", "score"}), ("SEQ_CLS", {"body", "score"})):
        config = SVDCoefficientConfig(target_modules="all-linear", task_type=task)
        inject_adapter_in_model(config, Classifier())
        assert config.target_modules == names  # Only models of transformers have heads that PEFT knows.
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small |= {"vocab_size": 50}
    for kind, task in ((BertForMaskedLM, None), (BertForSequenceClassification, "SEQ_CLS")):
        ours = SVDCoefficientConfig(target_modules="all-linear", task_type=task)
        theirs = LoraConfig(target_modules="all-linear", task_type=task)
        inject_adapter_in_model(ours, kind(BertConfig(**small)))
        inject_adapter_in_model(theirs, kind(BertConfig(**small)))
        assert ours.target_modules == theirs.target_modules
