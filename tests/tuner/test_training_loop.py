"""Warnings of what goes wrong quietly, and pairs that take the place of others."""

import copy
import warnings
from typing import ClassVar

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig
from samparser.tuner import expansion_terms, take_pairs, unused_coefficients, warn_of_unused_coefficients
from tests.tuner.expanded import expanded, initialize, waiting
from tests.tuner.models import MLP, TARGETS, batch, make, output


class TwoHeads(nn.Module):
    """A model of which the loss below sees one head only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x).tanh()
        return self.used(x), self.idle(x)


def two_heads(**choices: object) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(TwoHeads(), SVDCoefficientConfig(target_modules=["stem", "used", "idle"], **choices))


@pytest.mark.parametrize("trainable", ["coefficients", "bases", "both"])
def test_layers_whose_coefficients_get_no_gradient_are_named(trainable):
    model = two_heads(trainable=trainable)
    model(torch.randn(4, 6))[0].sum().backward()
    assert unused_coefficients(model) == ["idle"]
    # A gradient of zeros, as a reduction over processes gives, is none.
    model(torch.randn(4, 6))[1].mul(0).sum().backward()
    assert unused_coefficients(model) == ["idle"]
    model(torch.randn(4, 6))[1].sum().backward()
    assert unused_coefficients(model) == []


def test_frozen_adapters_and_plain_models_have_none():
    model = two_heads()
    model.add_adapter("other", SVDCoefficientConfig(target_modules=["idle"]))
    model.base_model.set_requires_grad("default", requires_grad=False)
    assert unused_coefficients(model) == []
    assert unused_coefficients(TwoHeads()) == []


def test_a_loop_of_ones_own_is_warned_at_its_first_step_alone():
    model = two_heads()
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    warn_of_unused_coefficients(model, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 6))[0].sum().backward()
        optimizer.step()

    with pytest.warns(UserWarning, match=r"The coefficients of idle got no gradient in the first step.*target_modules"):
        step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step()


def test_a_loop_in_which_all_train_is_not_warned():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=TARGETS["MLP"]))
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    warn_of_unused_coefficients(model, optimizer)
    model(batch("MLP")).square().sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


# Running statistics


class WithStatistics(nn.Module):
    """A frozen trunk with batch norms, as EdgeTAM has one, and a layer that is adapted."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(6, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.BatchNorm1d(6, **options)
        )
        self.neck = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.trunk(x))


def adapted(options: dict | None = None, **choices: object) -> PeftModel:
    return get_peft_model(WithStatistics(**options or {}), SVDCoefficientConfig(target_modules=["neck"], **choices))


def test_frozen_layers_that_change_in_training_mode_are_named_once():
    model, x = adapted(), torch.randn(5, 6)
    statistics = model.base_model.model.trunk[1].running_mean
    before = statistics.clone()
    message = r"in training mode: trunk\.1, trunk\.3\. Every forward pass changes.*reloaded.*eval mode.*modules_to_save"
    with pytest.warns(UserWarning, match=message):
        model.train()(x)
    assert not torch.equal(statistics, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


@pytest.mark.parametrize(
    ("options", "choices", "prepare"),
    [
        ({}, {}, lambda model: model.base_model.model.trunk.eval()),
        ({}, {}, lambda model: model.base_model.model.trunk.requires_grad_(True)),
        ({}, {}, lambda model: model.eval()),
        ({}, {"modules_to_save": ["trunk"]}, lambda model: None),
        ({"track_running_stats": False}, {}, lambda model: None),
        ({"momentum": 0.0}, {}, lambda model: None),
    ],
    ids=["trunk in eval mode", "trained", "all in eval mode", "saved along", "without statistics", "momentum 0"],
)
def test_layers_that_do_not_change_or_that_train_are_passed_over(options, choices, prepare):
    model = adapted(options, **choices).train()
    prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(5, 6))


# Weights that layers share


class Shared(nn.Module):
    """Two layers that stand in two places each: one as one module, the other with one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.ModuleDict({"fc": nn.Linear(6, 6)}), nn.ModuleDict({"fc": nn.Linear(6, 6)})
        self.again = nn.ModuleDict({"fc": self.left["fc"]})
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.right["fc"].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.right["fc"](self.again["fc"](self.left["fc"](x).tanh()).tanh()).tanh())


@pytest.mark.parametrize(
    ("target", "others"), [("left.fc", "left.fc (with again.fc)"), ("tied", "tied (with right.fc)")]
)
def test_a_weight_that_another_module_uses_is_named_since_merging_changes_both(target, others):
    x = torch.randn(4, 6)
    with pytest.warns(UserWarning, match="share their weight with other modules") as caught:
        model = get_peft_model(Shared(), SVDCoefficientConfig(target_modules=[target], init_weights=False))
    assert f": {others}. The coefficients" in str(caught[0].message)
    tuned = output(model, x)
    assert not torch.allclose(output(model.merge_and_unload(), x), tuned, atol=1e-4)


def test_modules_with_weights_of_their_own_merge_to_the_same_outputs_as_the_warning_says():
    x, base = torch.randn(4, 6), Shared()
    base.tied.weight = nn.Parameter(base.tied.weight.detach().clone())
    base.again["fc"] = copy.deepcopy(base.again["fc"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = SVDCoefficientConfig(target_modules=["left.fc", "right.fc", "tied"], init_weights=False)
        model = get_peft_model(base, config)
    tuned = output(model, x)
    torch.testing.assert_close(output(model.merge_and_unload(), x), tuned)


def test_a_block_that_stands_in_two_places_is_adapted_in_both_without_a_warning():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    base, x = nn.Sequential(block, block), torch.randn(4, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(base, SVDCoefficientConfig(target_modules=["0.0"], init_weights=False))
    tuned = output(model, x)
    torch.testing.assert_close(output(model.merge_and_unload(), x), tuned)


def test_two_adapted_layers_with_one_weight_are_named_both():
    with pytest.warns(UserWarning, match=r"right\.fc \(with tied\), tied \(with right\.fc\)\."):
        get_peft_model(Shared(), SVDCoefficientConfig(target_modules=["right.fc", "tied"]))


# Models that cannot say what their embeddings are


class NoEmbeddings(MLP):
    """As transformers' EdgeTamModel, which tells of tied weights and raises when asked for embeddings."""

    _tied_weights_keys: ClassVar = {"head.weight": "embed.weight"}
    is_gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError("`get_input_embeddings` not auto-handled for NoEmbeddings")


def test_a_model_that_raises_when_asked_for_embeddings_has_nothing_tied(tmp_path):
    torch.manual_seed(0)
    base = NoEmbeddings().eval()
    twin, x = copy.deepcopy(base), batch("MLP")
    model = get_peft_model(base, SVDCoefficientConfig(target_modules=["lin0"], init_weights=False))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twin, tmp_path)
    assert torch.equal(output(loaded, x), output(model, x))
    assert torch.equal(output(loaded.merge_and_unload(), x), output(model, x))


def test_pairs_of_another_run_take_the_place_of_those_that_were_chosen():
    model, other = expanded("MLP"), waiting("MLP", expansion_rank=2)
    initialize(other, "MLP", first=50)
    chosen = {name: terms.pairs.tolist() for name, terms in expansion_terms(other).items()}
    mine = expansion_terms(model)
    assert chosen != {name: terms.pairs.tolist() for name, terms in mine.items()}
    take_pairs(model, chosen)
    for name, terms in expansion_terms(model).items():
        assert terms.pairs.tolist() == chosen[name]
        assert torch.equal(terms.change, mine[name].change)
        assert torch.equal(terms.left, expansion_terms(other)[name].left)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "The pairs are those of no layer, but the terms are in lin0, lin1"),
        ({"lin0": [[0, 1]], "lin1": [[0, 1], [1, 0]]}, "lin0 has 2 pairs of bases, and 1 are given"),
        ({"lin0": [[0, 1], [1, 2]], "lin1": [[0, -1], [1, 0]]}, r"lin1 has \d+ bases, counted from 0"),
        ({"lin0": [[0, 1], [1, 2]], "lin1": [[0, 99], [1, 0]]}, r"lin1 has \d+ bases, counted from 0"),
    ],
    ids=["layers", "count", "negative", "large"],
)
def test_pairs_that_do_not_fit_are_named_and_change_nothing(pairs, message):
    model = expanded("MLP")
    before = expansion_terms(model)
    with pytest.raises(ValueError, match=message):
        take_pairs(model, pairs)
    assert all(torch.equal(terms.pairs, before[name].pairs) for name, terms in expansion_terms(model).items())
