"""The right base weight is recognised, a rounded one named, every other one refused with figures."""

import hashlib
import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

from samparser.tuner import base_record
from samparser.tuner.base_record import P0_TOLERANCE, Match, encode, fingerprint, make_record, match_base
from samparser.tuner.bases import bases_of, value_hash
from samparser.tuner.factors import factorize, fold, recompose, weight_change

KERNEL = (16, 8, 3, 3)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 5


def match_on(trained_on, now, **changes) -> Match:
    """What is found when an adapter of one weight meets another, through JSON as in a saved adapter."""
    saved = json.loads(json.dumps(make_record(trained_on, factorize(fold(trained_on)).p)))
    return match_base("neck.conv2", now, {**saved, **changes}, fan_in_fan_out=False)


def test_a_fingerprint_holds_shape_dtype_and_the_hash_of_the_values():
    weight = random(*KERNEL)
    found = fingerprint(weight)
    assert found["shape"] == [16, 8, 3, 3]
    assert found["dtype"] == "float32"
    assert found["sha256"] == hashlib.sha256(weight.numpy().tobytes()).hexdigest()[:16]
    assert set(found["rounded"]) == {"float16", "bfloat16"}
    assert len(json.dumps(found)) < 256


def test_the_hash_does_not_depend_on_memory_layout_or_on_lossless_widening():
    weight = random(*KERNEL).bfloat16()
    assert value_hash(weight.to(memory_format=torch.channels_last)) == value_hash(weight)
    assert value_hash(weight.float()) == value_hash(weight)
    assert value_hash(weight.float() + 1e-3) != value_hash(weight)


def test_the_files_of_the_vit_b_neck_take_less_than_eight_kilobytes():
    shapes = {"conv1": (256, 768, 1, 1), "conv2": (256, 256, 3, 3)}
    prefix = "base_model.model.vision_encoder.neck"
    weights = {f"{prefix}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    tensors = {f"{name}.svd_coefficient_{what}": torch.ones(256) for name in weights for what in ("p", "p0")}
    records = {name: fingerprint(weight) for name, weight in weights.items()}
    assert len(save(tensors, metadata={"format": "pt"})) + len(json.dumps(records)) < 8 * 1024


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_same_weight_is_accepted_in_silence(dtype):
    match = match_on(random(*KERNEL).to(dtype), random(*KERNEL).to(dtype))
    assert (match.kind, match.message, match.accepted) == ("equal", "", True)
    assert match.p0_difference == match.weight_difference == 0


def test_a_zero_weight_is_the_same_as_itself_and_no_other():
    zero = torch.zeros(4, 6)
    assert match_on(zero, zero).kind == "equal"
    assert match_on(zero, random(4, 6)).kind == "other"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("widened", [False, True], ids=["narrow", "widened again"])
def test_a_base_rounded_since_training_is_named_with_the_expected_error(dtype, widened):
    weight = random(*KERNEL)
    now = weight.to(dtype).float() if widened else weight.to(dtype)
    match = match_on(weight, now)
    assert (match.kind, match.accepted, match.rounded_to) == ("rounded", True, None)
    name = str(dtype).removeprefix("torch.")
    error = {"bfloat16": "0.3 to 10 %", "float16": "0.05 to 4 %"}[name]
    assert match.message.startswith("neck.conv2: the adapter was trained on this weight in float32")
    for part in (f"rounded to {name}", f"off by {error}", "(dtype=torch.float32)"):
        assert part in match.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_rounded_in_training_is_made_exact_by_rounding_it_again(dtype):
    weight = random(*KERNEL)
    match = match_on(weight.to(dtype), weight)
    assert (match.kind, match.message, match.accepted, match.rounded_to) == ("rounded", "", True, dtype)
    trained, again = factorize(fold(weight.to(dtype))), match.bases
    delta = torch.linspace(-1, 1, len(trained.p))
    assert torch.equal(weight_change(again.u, delta, again.vh), weight_change(trained.u, delta, trained.vh))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_rounded_in_training_is_named_where_the_bases_are_there_already(dtype):
    weight = random(*KERNEL)
    present = bases_of("neck.conv2", weight, fan_in_fan_out=False)
    saved = make_record(weight.to(dtype), factorize(fold(weight.to(dtype))).p)
    match = match_base("neck.conv2", weight, saved, fan_in_fan_out=False, present=present)
    assert (match.kind, match.accepted, match.rounded_to) == ("rounded", True, None)
    assert match.bases is present
    assert f"rounded to {str(dtype).removeprefix('torch.')} before it is factored" in match.message


def test_an_adapter_of_other_weights_is_refused_where_the_present_bases_are_of_a_rounding():
    weight, other = random(*KERNEL), random(*KERNEL, seed=1)
    present = bases_of("neck.conv2", weight, fan_in_fan_out=False, rounded_to=torch.bfloat16)
    for trained_on, kind in ((weight, "rounded"), (other, "other"), (random(16, 80), "reshaped")):
        saved = make_record(trained_on, factorize(fold(trained_on)).p)
        match = match_base(
            "neck.conv2", weight, saved, fan_in_fan_out=False, present=present, rounded_to=torch.bfloat16
        )
        assert (match.kind, match.accepted) == (kind, kind == "rounded")
        assert match.bases is present


def test_a_float64_copy_of_the_trained_weight_is_factored_as_it_was():
    weight = random(*KERNEL)
    assert match_on(weight, weight.double()).rounded_to == torch.float32
    assert match_on(weight.double(), weight).kind == "rounded"


def test_noise_in_the_last_bits_is_accepted_with_a_warning():
    weight = random(*KERNEL)
    match = match_on(weight, weight * (1 + 1e-7 * torch.randn(KERNEL, generator=torch.Generator().manual_seed(1))))
    assert (match.kind, match.accepted) == ("close", True)
    assert 0 < match.weight_difference < P0_TOLERANCE
    assert "not bit for bit" in match.message
    assert f"about {match.weight_difference:.1e} of its norm (tolerance 1e-05)" in match.message


def others():
    weight = random(16, 72)
    rotation = torch.linalg.qr(random(16, 16, seed=2))[0]
    return {
        "another seed": random(16, 72, seed=1),
        "tuned a little": weight + 1e-3 * random(16, 72, seed=1),
        "scaled": 1.01 * weight,
        "negated": -weight,
        "channels permuted": weight.flip(0),
        "rotated": rotation @ weight,
        "zero": torch.zeros(16, 72),
    }


@pytest.mark.parametrize(("name", "now"), others().items(), ids=others())
def test_another_weight_is_refused_with_layer_figures_tolerance_and_the_way_on(name, now):
    match = match_on(random(16, 72), now)
    assert (match.kind, match.accepted) == ("other", False)
    for part in (
        "neck.conv2: ",
        f"p0 differs by {match.p0_difference:.1e} of the largest singular value",
        f"the weight by about {match.weight_difference:.1e} of its norm",
        "(tolerance 1e-05)",
        "set its base_check to 'warn' and pass it as config= to PeftModel.from_pretrained",
        "load_model: check_base=False; command line: --check_base false)",
    ):
        assert part in match.message
    same_spectrum = name in ("negated", "channels permuted", "rotated")
    assert ("are channels permuted, or is the weight transposed?" in match.message) == same_spectrum


def test_a_square_weight_that_was_transposed_is_refused_although_its_spectrum_is_the_same():
    match = match_on(random(12, 12), random(12, 12).T)
    assert not match.accepted
    assert match.p0_difference < P0_TOLERANCE


def test_a_wider_tolerance_accepts_a_small_difference(monkeypatch):
    weight = random(16, 72)
    monkeypatch.setattr(base_record, "P0_TOLERANCE", 0.01)
    assert match_on(weight, weight + 1e-3 * random(16, 72, seed=1)).kind == "close"


def test_another_shape_is_refused_with_both_shapes():
    match = match_on(random(16, 72), random(16, 80))
    assert (match.kind, match.accepted) == ("reshaped", False)
    assert "a weight of shape (16, 72) with 16 coefficients, this base model has (16, 80) with 16" in match.message


def test_a_p0_that_does_not_belong_to_the_weight_is_refused_as_damage():
    weight, p0 = random(16, 72), factorize(random(16, 72)).p
    for damaged in (p0 * 1.001, p0.flip(0), torch.full_like(p0, float("nan"))):
        match = match_on(weight, weight, p0=encode(damaged))
        assert not match.accepted
        assert "neck.conv2: the base weight is the one" in match.message
        assert "tolerance 1e-05" in match.message


def test_something_that_is_no_fingerprint_is_refused_with_what_it_lacks():
    saved = {"shape": [2, 2], "dtype": "float32", "p0": encode(torch.ones(2))}
    with pytest.raises(ValueError, match=r"neck\.conv1: .* lacks probe, rounded, sha256; it has dtype, p0, shape"):
        match_base("neck.conv1", torch.ones(2, 2), saved, fan_in_fan_out=False)


def test_a_weight_without_values_has_no_fingerprint():
    with pytest.raises(ValueError, match=r"shape \(3, 5\) on the meta device"):
        fingerprint(torch.empty(3, 5, device="meta"))


@settings(max_examples=30)
@given(size=st.sampled_from([1e-4, 1e-2, 1.0]), seed=st.integers(1, 2**31))
def test_the_estimated_difference_of_the_weight_is_of_the_right_size(size, seed):
    weight = random(64, 96)
    now = weight + size * random(64, 96, seed=seed)
    right = ((now - weight).norm() / weight.norm()).item()
    # Four probes: a chi-square of four degrees of freedom stays in here but for one in a thousand seeds or so.
    assert 0.1 * right < match_on(weight, now).weight_difference < 2.5 * right


def test_the_errors_told_for_rounded_bases_are_those_of_random_and_of_falling_spectra():
    for spectrum in (None, torch.logspace(0, -3, 64)):
        weight = random(64, 192)
        if spectrum is not None:
            here = factorize(weight)
            weight = recompose(here.u, spectrum, here.vh)
        here = factorize(weight)
        delta = 0.1 * here.p * torch.randn(64, generator=torch.Generator().manual_seed(3))
        for dtype, (low, high) in {torch.bfloat16: (0.001, 0.12), torch.float16: (0.0002, 0.05)}.items():
            there = factorize(weight.to(dtype))
            right = weight_change(here.u, delta, here.vh)
            error = ((weight_change(there.u, delta, there.vh) - right).norm() / right.norm()).item()
            assert low < error < high
