"""Laws of layers with an expansion: what holds for coefficients holds for terms along frozen directions."""

import copy
import itertools
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from samparser import SVDCoefficientConfig, initialize_expansion
from samparser.tuner import coefficient_parameters, expansion_terms
from tests.tuner.expanded import KINDS, batches, expanded, initialize, stir, wrap_expanded
from tests.tuner.models import INPUTS, TARGETS, activate, batch, layers, make, output, train, trained_names
from tests.tuner.strategies import DTYPES, LAYERS, adapted, input_for
from tests.tuner.test_functional import form_taken
from tests.tuner.test_laws import plain_layer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SEEDS = st.integers(0, 1000)
CHOICES = st.fixed_dictionaries(
    {
        "expansion": st.sampled_from(KINDS),
        "trainable": st.sampled_from(["coefficients", "expansion"]),
        "parametrization": st.sampled_from(["absolute", "offset", "relative"]),
        "expansion_dtype": st.sampled_from(["float32", "float16"]),
        "scaling": st.sampled_from([1.0, -0.5]),
    }
)


def has_pairs(layer: nn.Module) -> bool:
    """Whether a layer's weight has two bases to pair."""
    out = layer.weight.shape[0]
    return min(out, layer.weight.numel() // out) > 1


def by_terms(layer, name: str) -> torch.Tensor:
    """The change of the weight by an adapter, term by term from its numbers, (out, fan_in) in float64."""
    state, (u, _, vh) = layer.states[name], (tensor.double() for tensor in layer.bases)
    origin, p = (tensor.double() for tensor in layer.spectrum(name))
    total = (u[:, : len(p)] * (p - origin)) @ vh[: len(p)]
    if state.expansion is not None:
        c, pairs = layer.svd_coefficient_c[name].double() * state.expansion.scale, len(state.expansion.rows)
        for k, (i, j) in enumerate(zip(state.expansion.rows, state.expansion.columns, strict=True)):
            total = total + c[k] * torch.outer(u[:, i], vh[j])
        for k in range(state.expansion.stored):
            a, b = layer.svd_coefficient_a[name][:, k], layer.svd_coefficient_b[name][k]
            total = total + c[pairs + k] * torch.outer(a.double(), b.double())
    return total.detach() * layer.scaling[name]


@settings(max_examples=40)
@given(layer=LAYERS.filter(has_pairs), dtype=DTYPES, choices=CHOICES, seed=SEEDS)
def test_an_expanded_layer_is_its_sum_of_terms_merged_unmerged_disabled_and_saved(
    tmp_path_factory, layer, dtype, choices, seed
):
    plain = plain_layer(layer, dtype, seed)
    x = input_for(plain)
    expected = output(plain, x)
    model = wrap_expanded(copy.deepcopy(plain), expansion_rank=1, **choices)
    ours = adapted(model)
    change = ours.get_delta_weight("default").double()
    change = (change.T if ours.fan_in_fan_out else change).flatten(1)
    torch.testing.assert_close(change, by_terms(ours, "default"), rtol=1e-4, atol=1e-5)
    tuned = output(ours, x)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(nn.ModuleDict({"layer": copy.deepcopy(plain)}), folder)
    assert torch.equal(output(adapted(loaded), x), tuned)
    model.merge_adapter()
    assert torch.equal(output(ours, x), tuned)
    with model.disable_adapter():
        assert torch.equal(output(ours, x), expected)
    model.unmerge_adapter()
    assert torch.equal(ours.base_weight, plain.weight)
    assert torch.equal(output(ours, x), tuned)
    with model.disable_adapter():
        assert torch.equal(output(ours, x), expected)


@settings(max_examples=25)
@given(
    layer=LAYERS.filter(has_pairs),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from([*KINDS, None])),
    weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
    seed=SEEDS,
)
def test_a_sum_of_expanded_adapters_is_the_sum_of_their_changes(layer, kinds, weights, seed):
    plain = plain_layer(layer, torch.float64, seed)
    model = wrap_expanded(copy.deepcopy(plain), "a", expansion=kinds[0], expansion_rank=1, parametrization="relative")
    rank = None if kinds[1] is None else 1
    model.add_adapter("b", SVDCoefficientConfig(target_modules=["layer"], expansion=kinds[1], expansion_rank=rank))
    model.set_adapter("b")
    if kinds[1]:
        x = input_for(plain)
        passes = [lambda model: adapted(model)(x).square().mean()] * 2
        initialize_expansion(model, passes, adapter_name="b", show=False)
    stir(model, "b", seed=5)
    ours = adapted(model)
    expected = sum(weight * ours.get_delta_weight(name) for name, weight in zip("ab", weights, strict=True))
    model.add_weighted_adapter(["a", "b"], list(weights), "sum")
    torch.testing.assert_close(ours.get_delta_weight("sum"), expected, rtol=1e-10, atol=1e-10)
    assert ours.states["sum"].expansion.count == 1 + (kinds[1] is not None)
    assert len(ours.states["sum"].expansion.rows) == kinds.count("pairs")


@pytest.mark.parametrize("kinds", itertools.combinations_with_replacement(KINDS, 2))
def test_a_sum_is_saved_and_comes_back(kinds, tmp_path):
    model = expanded("ConvNet", "a", expansion=kinds[0], trainable="expansion")
    choices = {"expansion": kinds[1], "expansion_rank": {"head": 1, r"neck\.\d": 2}}
    model.add_adapter("b", SVDCoefficientConfig(target_modules=TARGETS["ConvNet"], **choices))
    initialize(model, "ConvNet", "b", first=30)
    model.add_weighted_adapter(["a", "b"], [0.5, -2.0], "sum")
    kind = kinds[0] if kinds[0] == kinds[1] else "mixed"
    assert (model.peft_config["sum"].expansion, model.peft_config["sum"].trainable) == (kind, "coefficients")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    model.set_adapter("sum")
    loaded = PeftModel.from_pretrained(make("ConvNet"), tmp_path / "sum")
    assert torch.equal(output(loaded, batch("ConvNet")), output(model, batch("ConvNet")))


@pytest.mark.parametrize("expansion", KINDS)
@pytest.mark.parametrize("kind", INPUTS)
def test_active_adapters_add_up_in_any_order_and_scale(kind, expansion):
    model, x = expanded(kind, "a", "b", expansion=expansion), batch(kind)
    changes = {name: [layer.get_delta_weight(name) for layer in layers(model)] for name in "ab"}
    model.set_scale("b", -0.5)
    outputs = []
    for names in (["a", "b"], ["b", "a"]):
        activate(model, names)
        outputs.append(output(model, x))
        for i, layer in enumerate(layers(model)):
            total = layer.base_weight + changes["a"][i] - 0.5 * changes["b"][i]
            torch.testing.assert_close(layer.weight, total, **CLOSE)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("trainable", ["coefficients", "expansion"])
@pytest.mark.parametrize("expansion", KINDS)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_batch_of_mixed_adapters_equals_the_samples_by_themselves(kind, expansion, trainable):
    model, x = expanded(kind, "a", "b", expansion=expansion, trainable=trainable), batch(kind)
    model.add_adapter("plain", SVDCoefficientConfig(target_modules=TARGETS[kind]))
    model.set_adapter("plain")
    stir(model, "plain", seed=7)
    names = ["a", "__base__", "plain", "b"]
    mixed = output(model, x, adapter_names=names)
    for i, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                expected = output(model, x)
        else:
            model.set_adapter(name)
            expected = output(model, x)
        torch.testing.assert_close(mixed[i], expected[i], **CLOSE)


# The forms


@pytest.mark.parametrize("trainable", ["coefficients", "expansion"])
@pytest.mark.parametrize("expansion", KINDS)
@pytest.mark.parametrize(
    "base",
    [
        nn.Linear(24, 6),
        nn.Conv2d(24, 6, 1),
        nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.ConvTranspose2d(5, 3, 2, stride=2),
    ],
    ids=repr,
)
def test_both_forms_give_the_same_output_and_gradients(base, expansion, trainable):
    torch.manual_seed(0)
    x = input_for(base)
    results = []
    model = wrap_expanded(copy.deepcopy(base), expansion=expansion, expansion_rank=3, trainable=trainable)
    layer = adapted(model)
    for form in ("factored", "rebuilt"):
        layer.states["default"].form = form
        model.train()
        ours = x.clone().requires_grad_(True)
        assert form_taken(layer, ours) == form
        loss = layer(ours).square().mean()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        results.append([loss, *torch.autograd.grad(loss, [ours, *parameters])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pairs_cost_nothing_for_each_position_and_directions_two_vectors():
    from torch.utils.flop_counter import FlopCounterMode

    def products(**choices) -> int:
        torch.manual_seed(0)
        model = wrap_expanded(nn.Conv2d(32, 4, 1), form="factored", **choices)
        x = torch.randn(2, 32, 8, 9)
        adapted(model.train())(x)  # The first time, the layer looks whether its bases make up its weight.
        with FlopCounterMode(display=False) as counter:
            adapted(model)(x)
        return counter.get_total_flops() // 2

    positions = 2 * 8 * 9
    plain = positions * 4 * (32 + 4)
    assert products(expansion="pairs", expansion_rank=8) == plain
    assert products(expansion="gradient", expansion_rank=2) == plain + positions * 2 * (32 + 4)


def test_the_cheaper_form_counts_the_terms():
    x = torch.randn(1, 64, 32)
    for rank, form in ((1, "factored"), (8, "rebuilt")):
        torch.manual_seed(0)
        model = wrap_expanded(nn.Linear(32, 16), expansion="random", expansion_rank=rank)
        assert form_taken(adapted(model.train()), x) == form, rank


def test_a_layer_with_pairs_goes_on_from_a_projection_and_one_with_directions_does_not(generator):
    model = wrap_expanded(nn.Linear(16, 6), "a", "b", expansion="pairs", expansion_rank=5)
    layer, x = adapted(model), torch.randn(2, 9, 16, generator=generator)
    expected = output(layer, x)
    mixed = output(layer, x, adapter_names=["a", "b"])
    z = x @ layer.projection().T
    layer.takes_projection = True
    torch.testing.assert_close(output(layer, z), expected, **CLOSE)
    torch.testing.assert_close(output(layer, z, adapter_names=["a", "b"]), mixed, **CLOSE)
    model = wrap_expanded(nn.Linear(16, 6), expansion="gradient", expansion_rank=1)
    with pytest.raises(ValueError, match=r"adapter 'default' has bases of its own .*stored directions"):
        adapted(model).projection()


def test_the_adapted_weight_is_formed_once_in_evaluation():
    model, x = expanded("MLP"), batch("MLP")
    output(model, x)
    kept = [layer._kept for layer in layers(model)]
    output(model, x)
    assert all(layer._kept is one for layer, one in zip(layers(model), kept, strict=True))
    with torch.no_grad():
        layers(model)[0].svd_coefficient_c["default"] += 1
    changed = output(model, x)
    assert layers(model)[0]._kept is not kept[0]
    model.merge_adapter()
    assert torch.equal(output(model, x), changed)


def test_bases_that_are_computed_anew_take_the_pairs_along():
    model = expanded("MLP")
    other = make("MLP", seed=9)
    for layer, weight in zip(layers(model), (other.lin0.weight, other.lin1.weight), strict=True):
        layer.base_layer.weight.data.copy_(weight.data)
    output(model, batch("MLP"))
    for layer in layers(model):
        torch.testing.assert_close(layer.get_delta_weight("default").double(), by_terms(layer, "default"), **CLOSE)


def test_a_model_on_the_meta_device_takes_an_expanded_adapter(tmp_path):
    model, x = expanded("MLP"), batch("MLP")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make("MLP"), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(output(loaded, x), output(model, x))


def test_adapters_of_pairs_alone_take_turns_in_a_batch():
    torch.manual_seed(0)
    model = wrap_expanded(nn.Linear(12, 5), "a", "b", expansion="pairs", expansion_rank=4, trainable="expansion")
    layer, x = adapted(model), torch.randn(3, 12)
    mixed = output(layer, x, adapter_names=["b", "__base__", "a"])
    for i, name in enumerate(("b", None, "a")):
        weight = layer.base_weight if name is None else layer.base_weight + layer.get_delta_weight(name)
        torch.testing.assert_close(mixed[i], weight @ x[i] + layer.base_layer.bias, **CLOSE)
    layer.takes_projection = True
    z = x @ layer.bases.vh.T
    torch.testing.assert_close(output(layer, z, adapter_names=["b", "__base__", "a"]), mixed, **CLOSE)


@pytest.mark.parametrize("trainable", ["coefficients", "expansion"])
@pytest.mark.parametrize("expansion", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_transposed_convolution_gives_each_sample_its_adapter_in_one_pass(expansion, channels_last, trainable):
    torch.manual_seed(0)
    choices = {"expansion": expansion, "expansion_rank": 3, "trainable": trainable}
    model = wrap_expanded(nn.ConvTranspose2d(6, 4, 2, stride=2), "a", "b", **choices)
    layer, x = adapted(model), torch.randn(3, 6, 5, 4)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    mixed = output(layer, x, adapter_names=["b", "__base__", "a"])
    for i, name in enumerate(("b", None, "a")):
        weight = layer.base_weight if name is None else layer.base_weight + layer.get_delta_weight(name)
        expected = nn.functional.conv_transpose2d(x[i : i + 1], weight, layer.base_layer.bias, stride=2)
        torch.testing.assert_close(mixed[i : i + 1], expected, **CLOSE)


@pytest.mark.parametrize("kind", ["pairs", "gradient"])
def test_an_expanded_layer_compiles_into_one_graph(kind, request):
    model, x = wrap_expanded(nn.Linear(8, 6), expansion=kind, expansion_rank=2), torch.randn(2, 5, 8)
    layer = adapted(model.train())
    jaxtyping.config.update("jaxtyping_disable", True)
    request.addfinalizer(lambda: jaxtyping.config.update("jaxtyping_disable", False))
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(x)
    torch.testing.assert_close(compiled(x), expected, **CLOSE)
    layer.svd_coefficient_c["default"].grad = None
    compiled(x).square().sum().backward()
    got = layer.svd_coefficient_c["default"].grad.clone()
    layer.svd_coefficient_c["default"].grad = None
    layer(x).square().sum().backward()
    torch.testing.assert_close(got, layer.svd_coefficient_c["default"].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("expansion", KINDS)
def test_the_terms_can_be_read(expansion):
    model = expanded("Mixed", expansion=expansion, trainable="expansion", scaling=0.5)
    terms = expansion_terms(model)
    assert set(terms) == {layer.layer_name for layer in layers(model)}
    for layer in layers(model):
        found = terms[layer.layer_name]
        change = (found.left * found.change) @ found.right
        torch.testing.assert_close(0.5 * change.double(), by_terms(layer, "default"), **CLOSE)
        rows, columns = found.pairs.T
        assert len(found.pairs) == (2 if expansion == "pairs" else 0)
        assert torch.equal(found.left[:, : len(rows)], layer.bases.u[:, rows])
        assert torch.equal(found.right[: len(rows)], layer.bases.vh[columns])
        assert set(found.share) == {"coefficients", "all"}
    model.add_adapter("plain", SVDCoefficientConfig(target_modules=TARGETS["Mixed"]))
    assert expansion_terms(model, "plain") == {}
    with pytest.raises(ValueError, match=r"no SVD coefficient adapter 'x'; it has \['default', 'plain'\]"):
        expansion_terms(model, "x")


def test_an_expanded_adapter_is_deleted_whole():
    model = expanded("MLP", "a", "b", expansion="gradient")
    before = layers(model)[0].get_delta_weight("a")
    model.delete_adapter("b")
    assert not [name for name, _ in model.named_parameters() if name.endswith(".b")]
    model.add_adapter("b", SVDCoefficientConfig(target_modules=TARGETS["MLP"], expansion="pairs", expansion_rank=1))
    initialize(model, "MLP", "b")
    assert layers(model)[0].states["b"].expansion.count == 1
    assert torch.equal(layers(model)[0].get_delta_weight("a"), before)


# Counts


def test_only_the_terms_train_where_only_they_are_asked_for():
    model = expanded("MLP", trainable="expansion", expansion_rank={"lin0": 3})
    assert trained_names(model) == {"base_model.model.lin0.svd_coefficient_c.default"}
    assert model.get_nb_trainable_parameters()[0] == 3
    model = expanded("MLP", expansion="gradient")
    kinds = ("svd_coefficient_p", "svd_coefficient_c")
    expected = {f"base_model.model.{layer}.{kind}.default" for layer in ("lin0", "lin1") for kind in kinds}
    assert trained_names(model) == expected == {name for name, _ in coefficient_parameters(model)}
    model.set_adapter("default")
    assert trained_names(model) == expected


def test_64_pairs_on_the_neck_of_a_sam_are_128_numbers_in_one_to_two_kilobytes(tmp_path):
    neck = nn.Sequential(nn.Conv2d(768, 256, 1, bias=False), nn.Conv2d(256, 256, 3, padding=1, bias=False))
    config = SVDCoefficientConfig(target_modules=["0", "1"], expansion="pairs", trainable="expansion")
    model = get_peft_model(neck, config)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 768, 3, 3, generator=generator) for _ in range(2)]
    initialize_expansion(model, inputs, lambda model, x: model(x).square().mean(), show=False)
    assert model.get_nb_trainable_parameters()[0] == 128
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert 128 * 4 < file.stat().st_size < 2048
    tensors = load_file(file)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        f"base_model.model.{layer}.svd_coefficient_c": (64,) for layer in (0, 1)
    }


def test_directions_in_half_precision_take_half_the_room(tmp_path):
    sizes = {}
    for dtype in ("float32", "float16"):
        model = expanded("Mixed", expansion="gradient", expansion_dtype=dtype, trainable="expansion")
        model.save_pretrained(tmp_path / dtype)
        tensors = load_file(Path(tmp_path, dtype, "adapter_model.safetensors"))
        vectors = {name: tensor for name, tensor in tensors.items() if name.endswith(("_a", "_b"))}
        assert {str(tensor.dtype) for tensor in vectors.values()} == {f"torch.{dtype}"}
        sizes[dtype] = sum(tensor.nbytes for tensor in vectors.values())
    rows, columns = 6 + 9 + 4, 18 + 6 + 9
    assert sizes == {"float32": 4 * 2 * (rows + columns), "float16": 2 * 2 * (rows + columns)}


def test_top_trains_and_saves_the_leading_share_only(tmp_path):
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=TARGETS["MLP"], top=0.5))
    assert [layer.states["default"].rank for layer in layers(model)] == [5, 2]
    train(model, batch("MLP"))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(len(tensor) for tensor in tensors.values()) == [2, 5]
    loaded = PeftModel.from_pretrained(make("MLP"), tmp_path)
    assert torch.equal(output(loaded, batch("MLP")), output(model, batch("MLP")))
    for top, ranks in ((3, [3, 3]), (1.0, [10, 5]), (0.01, [1, 1]), (1, [1, 1]), (1000, [10, 5])):
        model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=TARGETS["MLP"], top=top))
        assert [layer.states["default"].rank for layer in layers(model)] == ranks, top


# Rates


@pytest.mark.parametrize("parametrization", ["offset", "relative"])
def test_weight_decay_pulls_to_the_start(parametrization):
    model = expanded("MLP", parametrization=parametrization)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=1.0)
    for _ in range(200):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    for layer in layers(model):
        assert layer.get_delta_weight("default").abs().max() < 1e-6


def test_an_offset_trains_as_coefficients_do_and_counts_from_the_start():
    results = []
    for parametrization in ("absolute", "offset"):
        config = SVDCoefficientConfig(target_modules=TARGETS["MLP"], parametrization=parametrization)
        model = get_peft_model(make("MLP"), config)
        train(model, batch("MLP"))
        results.append([layer.get_delta_weight("default") for layer in layers(model)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_unit_of_the_terms_is_that_of_the_coefficients():
    for parametrization in ("absolute", "offset", "relative"):
        for layer in layers(expanded("MLP", parametrization=parametrization)):
            unit = float(layer.bases.p.double().mean()) if parametrization == "relative" else 1.0
            assert layer.states["default"].expansion.scale == pytest.approx(unit)


def test_training_lowers_the_loss_from_the_very_base_model():
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=TARGETS["MLP"], expansion="pairs"))
    x = batch("MLP")
    plain = output(make("MLP"), x)
    initialize_expansion(model, batches("MLP"), show=False)
    assert torch.equal(output(model, x), plain)
    train(model, x)
    assert output(model, x).square().mean() < plain.square().mean()
    assert all(bool(p.any()) for name, p in model.named_parameters() if name.endswith("_c.default"))
