"""Every method on every family: it works from the first step to the merged model, or is refused with the reason."""

import copy
import functools
import re

import pytest
import torch
import transformers
from peft import PeftModel

from samparser.methods import METHODS, build, describe, load_trained, merged, save_trained
from samparser.methods.registry import applied_method
from samparser.sam import family_of, plain_model
from samparser.sam.changes import changes_before_neck, frozen_before_neck
from tests.sam.tiny import TINY, make_tiny

from .conftest import ALL, choose_terms, objective

BOXES = {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0]]] * 2)}
IN_ATTENTION = ("lora", "lora-qkv", "adapter", "adapter-houlsby", "transformer", "transformer+conv", "attention")
REFUSED = {("edgetam", name) for name in IN_ATTENTION}
CASES = [
    (family, name) for family in TINY for name in ALL if (family, name) not in REFUSED | {("edgetam", "lora-neck")}
]
TRAINING = [case for case in CASES if case[1] != "zero-shot"]
FROZEN_UPSTREAM = [case for case in CASES if not METHODS[case[1]].trains_upstream]

SAM3 = (8 + 16 + 32) + 3 * 32
"""Coefficients of the small SAM 3's three live levels: of 1x1 convolutions of so many channels, and of 3x3."""

# Boxes reach no embedding of points or masks, and with one mask asked for three of the four masks' heads get none.
SILENT = ("prompt_encoder.", "output_hypernetworks_mlps.", "pred_obj_score_head.")


def pixels_for(model):
    size = family_of(model).frame(model).size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def masks(model):
    """Mask logits (2, 2, 1, h, w) of the head that is trained, in eval mode."""
    with family_of(model).single_mask(model), torch.no_grad():
        return model.eval()(pixel_values=pixels_for(model), **BOXES, multimask_output=False).pred_masks


def fresh(model_type, name, **options):
    torch.manual_seed(0)
    model = build(name, make_tiny(model_type), **options)
    with family_of(model).single_mask(plain_model(model)):
        choose_terms(model, {"pixel_values": pixels_for(model), **BOXES})
    return model


def train(model, steps=2):
    inputs = {"pixel_values": pixels_for(model), **BOXES}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    model.train()
    for part in frozen_before_neck(model):
        part.eval()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, inputs).backward()
        optimizer.step()
    return model.eval()


@functools.cache
def shared(model_type, name):
    """A model that a method has trained for two steps; no test may change it."""
    model = fresh(model_type, name)
    return model if name == "zero-shot" else train(model)


@pytest.mark.parametrize(("model_type", "name"), sorted(REFUSED))
def test_what_an_encoder_has_no_place_for_is_refused_by_name_and_the_model_is_as_it_was(model_type, name):
    model = make_tiny(model_type)
    modules, state = list(model.named_modules()), {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        TypeError, match=rf"Method '{re.escape(name)}'.*EdgeTamModel has none: it is a convolutional network.*'full"
    ):
        build(name, model)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert applied_method(model) is None


def test_lora_on_the_neck_is_refused_where_peft_finds_no_embeddings():
    model = make_tiny("edgetam")
    with pytest.raises(TypeError, match=r"Method 'lora-neck'.*this EdgeTamModel names none\. 'samparser'"):
        build("lora-neck", model)
    assert not isinstance(model, PeftModel)


@pytest.mark.parametrize(
    ("model_type", "option", "message"),
    [
        ("sam", "skips", "SamModel has no convolution mask_decoder.conv_s0.*Leave `skips` out"),
        ("sam_hq", "skips", "SamHQModel has no convolution mask_decoder.conv_s0"),
        ("sam", "transposed", "neck of this SamModel has no transposed convolutions.*Leave `transposed` out"),
        ("sam2", "transposed", "neck of this Sam2Model has no transposed convolutions"),
    ],
)
def test_options_for_parts_that_a_family_lacks_are_refused(model_type, option, message):
    model = make_tiny(model_type)
    with pytest.raises(TypeError, match=message):
        build("samparser-coefficients", model, **{option: True})
    assert not isinstance(model, PeftModel)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_a_fresh_method_leaves_the_masks_of_the_base(model_type, name):
    before = masks(make_tiny(model_type))
    after = masks(fresh(model_type, name))
    if name == "adapter-houlsby":  # starts close to the identity, not at it
        assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()
    elif name.startswith("bases"):  # computed as U p V
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize(("model_type", "name"), TRAINING)
def test_training_moves_what_trains_and_nothing_else(model_type, name):
    before, after = fresh(model_type, name), shared(model_type, name)
    old = dict(before.named_parameters()) | dict(before.named_buffers())
    trained = {key for key, parameter in before.named_parameters() if parameter.requires_grad}
    new = dict(after.named_parameters()) | dict(after.named_buffers())
    moved = {key for key, value in new.items() if not torch.equal(value, old[key])}
    applied = applied_method(after)
    assert moved <= set(applied.trained)
    assert {key for key in trained - moved if not any(part in key for part in SILENT)} == set()
    assert describe(after).total == sum(old[key].numel() for key in trained)
    assert (masks(after) - masks(before)).abs().max() > 1e-3


@pytest.mark.parametrize(("model_type", "name"), CASES)
def test_trains_upstream_is_whether_features_change(model_type, name):
    model, base = shared(model_type, name), make_tiny(model_type)
    family, pixels = family_of(model), pixels_for(model)
    unchanged = all(map(torch.equal, family.encode(model, pixels), family.encode(base, pixels)))
    assert METHODS[name].trains_upstream == (not unchanged)
    if isinstance(model, PeftModel) or METHODS[name].trains_upstream:
        assert bool(changes_before_neck(model)) == METHODS[name].trains_upstream


@pytest.mark.parametrize(("model_type", "name"), FROZEN_UPSTREAM)
def test_the_masks_of_the_tuned_model_follow_from_the_features_of_the_base(model_type, name):
    # The mask decoder of SAM 2 and its kin has a part in the embeddings: its two convolutions on the neck's maps.
    model, base = shared(model_type, name), make_tiny(model_type)
    family, pixels = family_of(model), pixels_for(model)
    with torch.no_grad(), family.single_mask(model):
        embedded = family.embed(model, family.encode(base, pixels))
        logits, _ = family.decode(model, embedded, BOXES)
    assert torch.equal(logits, masks(model))


@pytest.mark.parametrize("name", ["samparser", "decoder"])
@pytest.mark.parametrize("model_type", ["sam2", "edgetam", "sam3_tracker"])
def test_a_decoder_that_is_trained_changes_the_embeddings_and_one_that_is_frozen_does_not(model_type, name):
    model, base = shared(model_type, name), make_tiny(model_type)
    coefficients = shared(model_type, "samparser-coefficients")  # trains, so not where there are no gradients
    family = family_of(base)
    features = family.encode(base, pixels_for(base))
    with torch.no_grad():
        mine, theirs = (family.embed(m, features)["image_embeddings"] for m in (model, base))
        frozen = family.embed(coefficients, features)["image_embeddings"]
    changed = [not torch.equal(one, other) for one, other in zip(mine, theirs, strict=True)]
    # conv_s0 and conv_s1 make the finer two; the neck's coefficients change all three.
    assert changed == [True, True, name == "samparser"]
    assert not any(map(torch.equal, frozen, theirs))
    decoder, plain = plain_model(model).mask_decoder, base.mask_decoder
    assert all(not torch.equal(getattr(decoder, c).weight, getattr(plain, c).weight) for c in ("conv_s0", "conv_s1"))


@pytest.mark.parametrize(("model_type", "name"), TRAINING)
def test_a_saved_model_comes_back_bit_for_bit(model_type, name, tmp_path):
    model = shared(model_type, name)
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny(model_type), tmp_path / "out")
    assert torch.equal(masks(loaded), masks(model))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert describe(model).bytes_on_disk == file.stat().st_size


@pytest.mark.parametrize(("model_type", "name"), [case for case in TRAINING if METHODS[case[1]].mergeable])
def test_a_merged_model_is_one_of_plain_transformers(model_type, name, tmp_path):
    model = shared(model_type, name)
    plain = merged(model)
    torch.testing.assert_close(masks(plain), masks(model), rtol=1e-3, atol=1e-4)
    plain.save_pretrained(tmp_path)
    again = getattr(transformers, family_of(plain).model_class).from_pretrained(tmp_path).eval()
    with torch.no_grad():  # without a word about single masks: the merged model's own config says it
        got = again(pixel_values=pixels_for(again), **BOXES, multimask_output=False).pred_masks
    assert torch.equal(got, masks(plain))


@pytest.mark.parametrize("model_type", [family for family in TINY if family != "edgetam"])
def test_lora_on_queries_and_values_leaves_the_keys_alone_in_every_layer(model_type):
    plain, base = merged(shared(model_type, "lora")), make_tiny(model_type)
    family = family_of(base)
    for mine, theirs in zip(family.attention_layers(plain), family.attention_layers(base), strict=True):
        for part, changes in (("query", True), ("key", False), ("value", True), ("out", False)):
            one, other = (getattr(site, part) for site in (mine, theirs))
            rows = one.linear.weight[one.rows], other.linear.weight[other.rows]
            assert torch.equal(*rows) == (not changes), one.name


@pytest.mark.parametrize("name", ["full-neck", "full"])
def test_what_reaches_no_mask_is_not_trained(name):
    applied = applied_method(fresh("sam3_tracker", name))
    idle = ("vision_encoder.neck.fpn_layers.3.", "no_memory_embedding")
    assert not [key for key in applied.trained if key.startswith(idle)]
    assert "vision_encoder.neck.fpn_layers.2.proj2.weight" in applied.trained
    assert "no_memory_embedding" not in describe(fresh("sam3_tracker", "full")).trained
    assert describe(fresh("sam2", "full")).trained["memory embedding"] == 32


def test_running_statistics_follow_full_training_and_stay_with_every_other_method():
    statistics = {key for key, _ in make_tiny("edgetam").named_buffers() if "running_" in key or "num_batches" in key}
    assert len(statistics) == 3 * 4
    for name in ("full", "full-neck", "decoder", "samparser"):
        kept = statistics & set(applied_method(fresh("edgetam", name)).trained)
        assert kept == (statistics if name == "full" else set())


@pytest.mark.parametrize(
    ("model_type", "options", "count"),
    [
        ("sam2", {"skips": True}, 8 + 16 + 2 * 32 + 4 + 8),
        ("edgetam", {"skips": True}, 8 + 16 + 2 * 32 + 4 + 8),
        ("sam3_tracker", {"skips": True}, SAM3 + 4 + 8),
        ("sam3_tracker", {"transposed": True}, SAM3 + 32 + 16 + 32),
        ("sam3_tracker", {"transposed": True, "skips": True}, SAM3 + 32 + 16 + 32 + 4 + 8),
    ],
)
def test_optional_coefficients_are_counted_train_and_merge(model_type, options, count):
    model = fresh(model_type, "samparser-coefficients", **options)
    assert describe(model).total == count
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    train(model, steps=1)
    after = dict(model.named_parameters())
    assert all((after[key] != value).all() for key, value in before.items())
    torch.testing.assert_close(masks(merged(copy.deepcopy(model))), masks(model), rtol=1e-3, atol=1e-4)
