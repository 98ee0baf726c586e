"""The data pass that chooses the directions of an expansion: what it computes, leaves alone, reports and refuses."""

import itertools
import json

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F

import samparser
from samparser import SVDCoefficientConfig, initialize_expansion
from samparser.tuner import expansion_terms
from tests.conftest import make_tiny_sam
from tests.reference.expansion import best_pairs, projection_share
from tests.tuner.expanded import KINDS, batches, initialize, stir, waiting
from tests.tuner.models import INPUTS, TARGETS, batch, layers, make, output, train, trained_names


def gradients(kind: str, seeds: list[int]) -> dict[str, torch.Tensor]:
    """The mean gradients of a plain model's weights, by autograd, as matrices."""
    model = make(kind)
    sum(model(batch(kind, seed)).square().mean() for seed in seeds).backward()
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight") and module.weight.grad is not None and module.weight.ndim > 1:
            gradient = module.weight.grad / len(seeds)
            found[name] = (gradient.T if type(module).__name__ == "Conv1D" else gradient).flatten(1)
    return found


@pytest.mark.parametrize("kind", INPUTS)
def test_pairs_are_chosen_by_the_gradient_of_the_first_half_and_measured_on_the_second(kind):
    model = waiting(kind, expansion_rank=2)
    report = initialize_expansion(model, batches(kind, 6, first=20), show=False)
    first, second = gradients(kind, [20, 21, 22]), gradients(kind, [23, 24, 25])
    assert (report.chosen_on, report.held_out) == (3, 3)
    for layer, row in zip(layers(model), report.layers, strict=True):
        name, expansion, bases = layer.layer_name, layer.states["default"].expansion, layer.bases
        found = set(zip(expansion.rows.tolist(), expansion.columns.tolist(), strict=True))
        assert found == best_pairs(first[name], bases.u, bases.vh, 2, set(range(bases.rank)))
        diagonal = [torch.outer(bases.u[:, i], bases.vh[i]) for i in range(bases.rank)]
        pairs = [torch.outer(bases.u[:, i], bases.vh[j]) for i, j in found]
        if row.share is None:
            assert (first[name] * second[name]).sum() <= 0
            continue
        alone = projection_share(first[name], second[name], diagonal)
        assert row.coefficients == pytest.approx(alone, rel=1e-3, abs=1e-4)
        share = projection_share(first[name], second[name], diagonal + pairs)
        assert row.share == pytest.approx(share, rel=1e-3, abs=1e-4)
        assert (row.name, row.numbers, row.terms) == (name, bases.rank + 2, 2)
        assert row.chance == pytest.approx(row.numbers / first[name].numel())


def test_batches_that_are_held_out_measure_instead_of_the_second_half():
    model = waiting()
    report = initialize_expansion(model, batches("MLP", 3, first=20), held_out=batches("MLP", 2, first=40), show=False)
    assert (report.chosen_on, report.held_out) == (3, 2)
    first, second = gradients("MLP", [20, 21, 22]), gradients("MLP", [40, 41])
    layer, row = layers(model)[0], report.layers[0]
    expansion, bases = layer.states["default"].expansion, layer.bases
    indices = zip(expansion.rows, expansion.columns, strict=True)
    directions = [torch.outer(bases.u[:, i], bases.vh[i]) for i in range(bases.rank)]
    directions += [torch.outer(bases.u[:, i], bases.vh[j]) for i, j in indices]
    assert row.share == pytest.approx(projection_share(first["lin0"], second["lin0"], directions), rel=1e-3)


@pytest.mark.parametrize("expansion", KINDS)
def test_nothing_is_trained_and_everything_but_the_terms_is_as_before(expansion):
    model, x = waiting("ConvNet", expansion=expansion, expansion_rank=1), batch("ConvNet")
    model.base_model.model.stem.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.train()
    model.base_model.model.head.eval()
    seen, modes = [], {name: module.training for name, module in model.named_modules()}
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    initialize_expansion(model, batches("ConvNet"), show=False)
    assert seen == [False] * 4
    assert {name: module.training for name, module in model.named_modules()} == modes
    after = dict(model.named_parameters())
    for name, (value, flag) in before.items():
        assert torch.equal(after[name], value)
        assert after[name].requires_grad == flag
        assert after[name].grad is None
    new = {name.split(".")[-2] for name in set(after) - set(before)}
    assert new == {"svd_coefficient_c"} | (
        {"svd_coefficient_a", "svd_coefficient_b"} if expansion != "pairs" else set()
    )
    assert not any(bool(after[name].any()) for name in after if "svd_coefficient_c" in name)
    assert all(layer.gradient_probe is None for layer in layers(model))
    assert torch.equal(output(model, x), output(make("ConvNet"), x))


def test_a_pass_that_fails_leaves_no_terms_and_no_probes():
    model = waiting()
    for broken in ([*batches("MLP", 3), {"x": 1}], [lambda model: model(batch("MLP")).mean() * float("nan")] * 4):
        with pytest.raises((ValueError, TypeError)):
            initialize_expansion(model, broken, show=False)
        assert all(layer.gradient_probe is None for layer in layers(model))
        assert all(layer.states["default"].awaits for layer in layers(model))


def test_losses_by_function_by_keyword_and_by_the_model_are_the_same():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make("MLP")

        def forward(self, x, target):
            return {"loss": F.mse_loss(self.inner(x), target)}

    targets, found = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)], []
    kinds = {
        "keywords": ([{"x": batch("MLP", i), "target": targets[i]} for i in range(4)], None),
        "loss": ([(batch("MLP", i), targets[i]) for i in range(4)], lambda model, pair: model(*pair)["loss"]),
        "functions": ([lambda model, i=i: model(batch("MLP", i), targets[i])["loss"] for i in range(4)], None),
        "generator": (({"x": batch("MLP", i), "target": targets[i]} for i in range(4)), None),
    }
    for given, loss in kinds.values():
        config = SVDCoefficientConfig(target_modules=["lin0"], expansion="pairs", expansion_rank=4)
        found.append(initialize_expansion(get_peft_model(WithLoss(), config), given, loss, show=False))
    assert all(one == found[0] for one in found[1:])


def test_no_more_batches_are_taken_than_asked_for():
    taken = []
    for given in (range(100), iter(range(100))):
        taken.clear()
        model = waiting()
        report = initialize_expansion(
            model, given, lambda m, i: taken.append(i) or m(batch("MLP", i)).square().mean(), max_batches=5, show=False
        )
        assert taken == [0, 1, 2, 3, 4]
        assert (report.chosen_on, report.held_out) == (2, 3)


def test_one_gradient_is_kept_for_each_layer():
    model = waiting("Blocks")
    kept = []

    def loss(model, seed):
        kept.append([layer.gradient_probe.untyped_storage().nbytes() for layer in layers(model)])
        return model(batch("Blocks", seed)).square().mean()

    initialize_expansion(model, range(4), loss, show=False)
    assert all(sizes == [4] * 6 for sizes in kept)  # A probe is one zero, seen as a whole weight.


def test_held_out_batches_may_never_end():
    held_out = ((lambda model, i=i: model(batch("MLP", i)).square().mean()) for i in itertools.count())
    report = initialize_expansion(waiting(), batches("MLP", 2), held_out=held_out, max_batches=3, show=False)
    assert (report.chosen_on, report.held_out) == (2, 3)


def test_an_output_size_reaches_a_transposed_convolution_in_the_pass():
    net = nn.ModuleDict({"up": nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1)})
    config = SVDCoefficientConfig(target_modules=["up"], expansion="pairs", expansion_rank=2)
    model = get_peft_model(net, config)
    x = [torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    sizes = []

    def loss(model, x):
        y = layers(model)[0](x, output_size=[8, 8])
        sizes.append(tuple(y.shape[2:]))
        return y.square().mean()

    initialize_expansion(model, x, loss, show=False)
    assert sizes == [(8, 8)] * 2
    y = F.conv_transpose2d(x[0], weight := net["up"].base_layer.weight.clone().requires_grad_(True), None, 2, 1, 1)
    (y + net["up"].base_layer.bias[:, None, None]).square().mean().backward()
    expansion, bases = layers(model)[0].states["default"].expansion, layers(model)[0].bases
    found = set(zip(expansion.rows.tolist(), expansion.columns.tolist(), strict=True))
    assert found == best_pairs(weight.grad.flatten(1), bases.u, bases.vh, 2, set(range(bases.rank)))


def test_a_frozen_adapter_that_gets_further_terms_stays_frozen(tmp_path):
    model = waiting("MLP", expansion_rank=1)
    initialize(model, "MLP")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("MLP"), tmp_path)
    initialize_expansion(loaded, batches("MLP"), more=True, show=False)
    assert trained_names(loaded) == set()


@pytest.mark.parametrize("trainable", ["coefficients", "expansion"])
def test_a_layer_that_allows_no_pair_trains_no_number_for_them(trainable, tmp_path):
    def make_plain():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))

    choices = {"target_modules": ["0", "1"], "expansion": "pairs", "trainable": trainable}
    model, x = get_peft_model(make_plain(), SVDCoefficientConfig(**choices)), torch.randn(4, 6)
    report = initialize_expansion(model, [x, x + 1], lambda model, x: model(x).square().mean(), show=False)
    assert [row.terms for row in report.layers] == [12, 0]
    kinds = {"svd_coefficient_c", "svd_coefficient_p"} if trainable == "coefficients" else {"svd_coefficient_c"}
    assert {name.split(".")[-2] for name in trained_names(model) if ".0." in name} == kinds
    assert {name.split(".")[-2] for name in trained_names(model) if ".1." in name} == kinds - {"svd_coefficient_c"}
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    stir(model)
    assert len(expansion_terms(model)) == 1
    model.add_weighted_adapter(["default"], [2.0], "sum")
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    loaded = PeftModel.from_pretrained(make_plain(), tmp_path)
    assert torch.equal(output(loaded, x), output(model, x))


def test_a_weight_of_zeros_has_a_unit_all_the_same():
    net = nn.ModuleDict({"layer": nn.Linear(4, 3)})
    nn.init.zeros_(net["layer"].weight)
    choices = {"expansion": "gradient", "expansion_rank": 1, "parametrization": "relative"}
    with pytest.warns(UserWarning, match=r"Few coefficients can change by themselves in layer \(0 of 3\)"):
        model = get_peft_model(net, SVDCoefficientConfig(target_modules=["layer"], **choices))
    x = torch.randn(5, 4)
    initialize_expansion(model, [x, x], lambda model, x: layers(model)[0](x).square().mean(), show=False)
    assert layers(model)[0].states["default"].expansion.scale == 1


@pytest.mark.parametrize("expansion", KINDS)
def test_further_terms_keep_those_that_were_trained(expansion):
    model, x = waiting("MLP", expansion=expansion, expansion_rank=2), batch("MLP")
    initialize(model, "MLP")
    before = [layer.get_delta_weight("default") for layer in layers(model)]
    pairs = [layer.states["default"].expansion for layer in layers(model)]
    with pytest.raises(ValueError, match=r"Adapter 'default' has its terms already, 2 in lin0.*more=True"):
        initialize_expansion(model, batches("MLP"), show=False)
    tuned = output(model, x)
    initialize_expansion(model, batches("MLP"), more=True, seed=3, show=False)
    for layer, change, had in zip(layers(model), before, pairs, strict=True):
        expansion_now = layer.states["default"].expansion
        assert expansion_now.count == 4
        assert torch.equal(expansion_now.rows[: len(had.rows)], had.rows)
        indices = list(zip(expansion_now.rows.tolist(), expansion_now.columns.tolist(), strict=True))
        assert len(set(indices)) == len(indices)
        torch.testing.assert_close(layer.get_delta_weight("default"), change)
    torch.testing.assert_close(output(model, x), tuned)


def test_further_terms_are_chosen_at_the_model_as_it_stands():
    model = waiting("MLP", expansion_rank=1, trainable="expansion")
    initialize(model, "MLP")
    plain = make("MLP")
    with torch.no_grad():
        for name, layer in zip(("lin0", "lin1"), layers(model), strict=True):
            plain.get_submodule(name).weight += layer.get_delta_weight("default")
    sum(plain(batch("MLP", seed)).square().mean() for seed in (50, 51)).backward()
    initialize_expansion(model, batches("MLP", 2, first=50), held_out=batches("MLP", 1), more=True, show=False)
    for name, layer in zip(("lin0", "lin1"), layers(model), strict=True):
        expansion, gradient = layer.states["default"].expansion, plain.get_submodule(name).weight.grad
        had = (int(expansion.rows[0]), int(expansion.columns[0]))
        best = best_pairs(gradient, layer.bases.u, layer.bases.vh, 2, set(range(layer.bases.rank)))
        assert (int(expansion.rows[1]), int(expansion.columns[1])) in best - {had}


def test_the_report_is_a_table_and_is_printed_and_saved(capsys, tmp_path):
    model = waiting()
    report = initialize_expansion(model, batches("MLP"))
    lines = str(report).splitlines()
    assert capsys.readouterr().out == f"{report}\n"
    assert lines[1].split() == ["layer", "numbers", "chance", "coefficients", "with", "terms"]
    assert [line.split()[0] for line in lines[2:]] == ["lin0", "lin1", "all", "chosen"]
    assert lines[2].split()[1:3] == ["13", f"{100 * 13 / 120:.1f}"]
    assert lines[-1] == "chosen on 2 batches, measured on 2 others"
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "adapter_config.json").read_text())["expansion_record"]
    for row in report.layers:
        assert record[row.name]["share"] == {"coefficients": row.coefficients, "all": row.share}


def test_a_model_that_peft_or_transformers_wrapped_otherwise_is_taken_too():
    model = inject_adapter_in_model(
        SVDCoefficientConfig(target_modules=TARGETS["MLP"], expansion="pairs", expansion_rank=2), make("MLP")
    )
    assert len(initialize_expansion(model, batches("MLP"), show=False).layers) == 2
    train(model, batch("MLP"))


def test_a_sam_gets_pairs_on_its_neck(tmp_path):
    config = SVDCoefficientConfig(expansion="pairs", expansion_rank=5, parametrization="relative")
    model = get_peft_model(make_tiny_sam(), config)
    images = [torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    def loss(model, image):
        return model(pixel_values=image, input_points=torch.tensor([[[[20.0, 20.0]]]])).pred_masks.square().mean()

    report = initialize_expansion(model, images, loss, show=False)
    assert [row.name for row in report.layers] == ["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"]
    stir(model)
    with torch.no_grad():
        expected = loss(model.eval(), images[0])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_tiny_sam(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loss(loaded.eval(), images[0]), expected)


# Before the pass


def test_before_the_pass_the_model_computes_as_the_base_and_says_what_training_and_saving_need(tmp_path):
    model, x = waiting(), batch("MLP")
    assert torch.equal(output(model, x), output(make("MLP"), x))
    model.train()
    message = r"lin0: adapter 'default' has an expansion whose directions have not been chosen. Call samparser.initial"
    with pytest.raises(ValueError, match=message):
        model(x)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with model.disable_adapter():
        model(x)
    with torch.no_grad():
        model(x)
    assert callable(samparser.initialize_expansion)
    initialize_expansion(model, batches("MLP"), show=False)
    model(x)


def test_a_layer_without_terms_of_its_own_neither_waits_nor_gets_any(tmp_path):
    model = waiting("MLP", expansion_rank={"lin1": 2})
    assert [row.name for row in initialize_expansion(model, batches("MLP"), show=False).layers] == ["lin1"]
    train(model, batch("MLP"))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("MLP"), tmp_path)
    assert torch.equal(output(loaded, batch("MLP")), output(model, batch("MLP")))
    assert trained_names(model) >= {"base_model.model.lin1.svd_coefficient_c.default"}
