"""Exact names and numbers of what each method trains on SAM ViT-B, and that nothing else moves."""

import pytest
import torch

from samparser.methods import METHODS, build, describe
from samparser.methods.cost import count_parameters, meta_model
from samparser.methods.registry import with_placeholders
from tests.conftest import make_tiny_sam

from .conftest import ALL, TRAINING, choose_terms, masks, shared_tuned_tiny_sam

DECODER = 4_058_340

# Trained parameters on ViT-B beside the mask decoder, and whether the decoder trains.
COUNTS = {
    "zero-shot": (0, False),
    "decoder": (0, True),
    "full-neck": (786_432 + 1_024, True),
    "full": (89_670_912 + 6_220, True),
    "lora": (147_456, True),
    "lora-qkv": (147_456, True),
    "adapter": (3_598_848, True),
    "adapter-houlsby": (3_550_464, True),
    "samparser": (512, True),
    "samparser-coefficients": (512, False),
    "bases": (917_504, True),
    "bases+coefficients": (918_016, True),
    "transformer": (36_864, True),
    "transformer+conv": (37_376, True),
    "expansion": (2 * 64, False),
    "attention": (12 * 2 * 768, False),
    "lora-neck": (768 + 256 + 9 * 256 + 256, False),
}
LAYERS = range(12)
LINEAR = ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
PEFT = "base_model.model."


def _neck(kind: str) -> set[str]:
    return {f"{PEFT}vision_encoder.neck.conv{i}.svd_coefficient_{kind}.default" for i in (1, 2)}


def _linears(kind: str) -> set[str]:
    return {f"{PEFT}vision_encoder.layers.{i}.{name}.svd_coefficient_{kind}.default" for i in LAYERS for name in LINEAR}


def _in_layers(*names: str) -> set[str]:
    return {f"vision_encoder.layers.{i}.{name}" for i in LAYERS for name in names}


def _added_names(plain: set[str]) -> dict[str, set[str]]:
    """The names that train beside the mask decoder, written out by hand; ``plain`` are those of SamModel."""
    neck = {f"vision_encoder.neck.{m}" for m in ("conv1.weight", "conv2.weight")} | {
        f"vision_encoder.neck.layer_norm{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
    bases = _neck("u") | _neck("vh")
    return {
        "zero-shot": set(),
        "decoder": set(),
        "full-neck": neck,
        "full": {
            name
            for name in plain
            if not name.startswith("mask_decoder.") and name != "shared_image_embedding.positional_embedding"
        },
        "lora": _in_layers(*(f"attn.qkv.{part}_{matrix}" for part in ("query", "value") for matrix in "ab")),
        "lora-qkv": {f"{PEFT}{name}" for name in _in_layers(*(f"attn.qkv.lora_{m}.default.weight" for m in "AB"))},
        "adapter": _in_layers(
            *(f"adapter.{part}" for part in ("down.weight", "conv.weight", "conv.bias", "up.weight"))
        ),
        "adapter-houlsby": _in_layers(*(f"adapter.{m}.{part}" for m in ("down", "up") for part in ("weight", "bias"))),
        "samparser": _neck("d"),
        "samparser-coefficients": _neck("d"),
        "bases": bases,
        "bases+coefficients": bases | _neck("d"),
        "transformer": _linears("d"),
        "transformer+conv": _linears("d") | _neck("d"),
        "expansion": _neck("c"),
        "attention": {name for name in _linears("d") if ".attn." in name},
        "lora-neck": {
            f"{PEFT}vision_encoder.neck.conv{i}.lora_{matrix}.default.weight" for i in (1, 2) for matrix in "AB"
        },
    }


@pytest.mark.parametrize("name", COUNTS)
def test_exactly_these_parameters_train_on_vit_b(name):
    plain = {key for key, _ in meta_model().named_parameters()}
    decoder = {key for key in plain if key.startswith("mask_decoder.")}
    added, with_decoder = COUNTS[name]
    expected = _added_names(plain)[name]
    model = with_placeholders(build(name, meta_model()))
    if with_decoder:
        modules = "modules_to_save.default."
        expected |= (
            {f"{PEFT}mask_decoder.{modules}{key.removeprefix('mask_decoder.')}" for key in decoder}
            if hasattr(model, "peft_config")
            else decoder
        )
    assert {key for key, parameter in model.named_parameters() if parameter.requires_grad} == expected
    assert count_parameters(model)[1] == added + (DECODER if with_decoder else 0)
    assert describe(model).total == added + (DECODER if with_decoder else 0)


def test_coefficients_of_the_decoder_replace_its_four_million_weights():
    model = build("samparser-decoder-coefficients", meta_model())
    linears = [m for n, m in meta_model().mask_decoder.named_modules() if isinstance(m, torch.nn.Linear)]
    expected = 512 + sum(min(linear.in_features, linear.out_features) for linear in linears)
    assert count_parameters(model)[1] == expected
    assert describe(model).trained == {"neck": 512, "mask decoder": expected - 512}


def test_every_method_has_its_count_here():
    assert set(COUNTS) | {"samparser-decoder-coefficients"} == set(ALL)


@pytest.mark.parametrize("name", TRAINING)
def test_training_moves_what_trains_and_nothing_else(name, tiny_inputs):
    torch.manual_seed(0)
    before = build(name, make_tiny_sam())
    choose_terms(before, tiny_inputs)
    after = shared_tuned_tiny_sam(name)
    old = dict(before.named_parameters())
    trained = {key for key, parameter in old.items() if parameter.requires_grad}
    moved = {key for key, parameter in after.named_parameters() if not torch.equal(parameter, old[key])}
    assert moved - trained == set()
    # Boxes reach neither the embeddings of points and masks nor, with one mask asked for, three of four hypernetworks.
    silent = ("prompt_encoder.", "output_hypernetworks_mlps.")
    assert {key for key in trained - moved if not any(part in key for part in silent)} == set()
    assert not torch.equal(masks(after, tiny_inputs), masks(before.eval(), tiny_inputs))


@pytest.mark.parametrize("name", ALL)
def test_a_fresh_method_leaves_the_masks_of_the_base(name, tiny_inputs):
    plain = make_tiny_sam()
    before = masks(plain, tiny_inputs)
    after = masks(build(name, plain).eval(), tiny_inputs)
    if name == "adapter-houlsby":  # starts close to the identity, not at it
        torch.testing.assert_close(after, before, rtol=0, atol=0.05 * before.abs().max().item())
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_trains_upstream_is_whether_the_features_that_enter_the_neck_change(name, tiny_inputs):
    def entering(model):
        neck = next(module for key, module in model.named_modules() if key.endswith("vision_encoder.neck"))
        seen = []
        handle = neck.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        masks(model, tiny_inputs)
        handle.remove()
        return seen[0]

    unchanged = torch.equal(entering(shared_tuned_tiny_sam(name)), entering(make_tiny_sam()))
    assert METHODS[name].trains_upstream == (not unchanged)


@pytest.mark.parametrize("name", [n for n in ALL if "decoder" in METHODS[n].options])
def test_the_decoder_can_be_left_frozen(name):
    model = build(name, make_tiny_sam(), decoder=False)
    assert "mask decoder" not in describe(model).trained
    assert describe(model).total > 0


@pytest.mark.parametrize("name", ALL)
def test_the_forward_takes_image_embeddings_as_sam_does(name, tiny_inputs):
    model = shared_tuned_tiny_sam(name)
    with torch.no_grad():
        embeddings = model.get_image_embeddings(tiny_inputs["pixel_values"])
        from_embeddings = model(
            image_embeddings=embeddings, input_boxes=tiny_inputs["input_boxes"], multimask_output=False
        ).pred_masks
    torch.testing.assert_close(from_embeddings, masks(model, tiny_inputs))
