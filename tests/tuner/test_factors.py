"""Laws of the factorisation: what is split comes back, whatever the shape, dtype and spectrum."""

import time

import hypothesis.strategies as st
import jaxtyping
import pytest
import torch
from hypothesis import example, given, settings

from samparser.tuner.factors import Factors, factorize, fix_signs, fold, recompose, storage_dtype, unfold, weight_change
from tests.reference import factors as reference

# Norm of the error over the norm of the right value.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-7, torch.bfloat16: 5e-7, torch.float16: 5e-7}

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 12)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(wrong, right):
    return ((wrong.double() - right.double()).norm() / right.double().norm().clamp(min=1e-300)).item()


# fold, unfold


@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=5), seed=seeds)
def test_fold_lists_each_output_channels_kernel_and_unfold_undoes_it(shape, seed):
    weight = random(*shape, seed=seed)
    matrix = fold(weight)
    assert torch.equal(matrix, reference.fold(weight))
    assert torch.equal(unfold(matrix, weight.shape), weight)


def test_a_weight_stored_as_in_by_out_is_transposed():
    weight = random(3, 5)
    matrix = fold(weight, fan_in_fan_out=True)
    assert matrix.shape == (5, 3)
    assert torch.equal(unfold(matrix, weight.shape, fan_in_fan_out=True), weight)


def test_fold_does_not_copy_the_weight():
    weight = random(4, 3, 2, 2)
    assert fold(weight).data_ptr() == weight.data_ptr()


def test_a_vector_cannot_be_folded():
    with pytest.raises(ValueError, match=r"shape \(7,\) as a matrix"):
        fold(torch.ones(7))


def test_a_kernel_cannot_be_stored_as_in_by_out():
    with pytest.raises(ValueError, match=r"fan_in_fan_out=True .* shape \(4, 3, 1, 1\)"):
        fold(torch.ones(4, 3, 1, 1), fan_in_fan_out=True)


# factorize


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=50)
@given(out=sides, fan_in=sides, seed=seeds)
def test_the_sum_of_the_terms_is_the_weight(dtype, out, fan_in, seed):
    weight = random(out, fan_in, seed=seed, dtype=dtype)
    u, p, vh = factorize(weight)
    assert relative_error(reference.sum_of_terms(u, p, vh), weight) < TOLERANCE[dtype]
    assert relative_error(recompose(u, p, vh), weight) < 2 * TOLERANCE[dtype]


@given(out=sides, fan_in=sides, seed=seeds, rank=st.integers(0, 4))
@example(out=1, fan_in=1, seed=0, rank=0)
@example(out=6, fan_in=9, seed=0, rank=0)
def test_the_bases_are_orthonormal_and_the_coefficients_fall_for_any_rank(out, fan_in, seed, rank):
    weight = random(out, rank, seed=seed) @ random(rank, fan_in, seed=seed + 1)
    u, p, vh = factorize(weight)
    identity = torch.eye(min(out, fan_in), dtype=torch.float64)
    assert (u.shape, p.shape, vh.shape) == ((out, len(identity)), (len(identity),), (len(identity), fan_in))
    torch.testing.assert_close(u.double().T @ u.double(), identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(vh.double() @ vh.double().T, identity, rtol=0, atol=1e-6)
    assert bool((p >= 0).all() and (p.diff() <= 0).all())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_factors_are_float32_unless_the_weight_is_float64(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {factor.dtype for factor in factorize(random(4, 6, dtype=dtype))} == {expected}
    assert storage_dtype(random(2, 2, dtype=dtype)) == expected


def test_the_decomposition_is_that_of_float64_rounded_once():
    weight = random(30, 20)
    _, p, _ = factorize(weight)
    assert torch.equal(p, torch.linalg.svdvals(weight.double()).float())


@settings(max_examples=50)
@given(out=sides, fan_in=sides, seed=seeds)
def test_the_largest_entry_of_each_left_vector_is_positive(out, fan_in, seed):
    u, _, _ = factorize(random(out, fan_in, seed=seed))
    largest = u.abs().amax(0)
    assert bool(((u.amax(0) >= largest * (1 - 2e-6)) | (u.amin(0).abs() < largest)).all())


def test_entries_of_equal_size_leave_the_sign_to_the_first_whatever_the_last_bits():
    u = torch.tensor([[-0.5], [0.5 + 1e-9], [-0.5], [0.5]], dtype=torch.float64)
    fixed, vh = fix_signs(u, torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert torch.equal(fixed, -u)
    assert vh.tolist() == [[-1.0, -2.0]]


@given(out=sides, fan_in=sides, seed=seeds, flips=seeds)
def test_the_sign_rule_undoes_any_flip_of_a_pair(out, fan_in, seed, flips):
    u, _, vh = factorize(random(out, fan_in, seed=seed))
    sign = random(u.shape[1], seed=flips).sign()
    flipped = fix_signs(u * sign, sign[:, None] * vh)
    assert torch.equal(flipped[0], u)
    assert torch.equal(flipped[1], vh)


def test_factors_of_a_transposed_weight_are_swapped():
    weight = random(10, 30)
    here, there = factorize(weight), factorize(weight.T)
    assert torch.equal(here.p, there.p)
    assert relative_error(recompose(there.vh.T, here.p, there.u.T), weight) < 1e-6


def test_factors_take_no_part_in_autograd_and_can_be_trained_after_inference_mode():
    weight = torch.nn.Parameter(random(4, 6))
    assert not any(factor.requires_grad for factor in factorize(weight))
    with torch.inference_mode():
        factors = factorize(weight)
        of_inference_tensor = factorize(random(4, 6).clone())
    for factor in (*factors, *of_inference_tensor):
        assert not factor.is_inference()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_with_the_count(value):
    weight = torch.ones(3, 5)
    weight[0, :2] = value
    with pytest.raises(ValueError, match=r"\(3, 5\): 2 of its 15 values are NaN or infinite"):
        factorize(weight)


def test_a_weight_without_values_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\) on the meta device"):
        factorize(torch.empty(3, 5, device="meta"))
    with pytest.raises(ValueError, match=r"empty weight of shape \(0, 5\)"):
        factorize(torch.empty(0, 5))


def test_a_spectrum_beyond_float32_is_refused():
    with pytest.raises(
        ValueError, match=r"\(100, 100\) weight whose largest entry is 3e\+38, does not fit into .*float32"
    ):
        factorize(torch.full((100, 100), 3e38))
    assert factorize(torch.full((100, 100), 3e38, dtype=torch.float64)).p[0].item() == pytest.approx(3e40)


def test_weights_as_small_as_sams_own_initialisation_keep_their_precision():
    weight = 1e-10 * random(16, 24)
    assert relative_error(recompose(*factorize(weight)), weight) < 5e-7


@pytest.mark.parametrize("shapes", [[(256, 768, 1, 1), (256, 256, 3, 3)]], ids=["neck of SAM ViT-B"])
def test_the_neck_is_factored_in_half_a_second_of_one_core(shapes):
    weights = [random(*shape) for shape in shapes]
    factorize(random(64, 64))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        ranks = [len(factorize(fold(weight)).p) for weight in weights]
        seconds = time.process_time() - started
    finally:
        torch.set_num_threads(threads)
    assert ranks == [256, 256]
    assert seconds < 0.5


# recompose, weight_change


@settings(max_examples=50)
@given(out=sides, fan_in=sides, seed=seeds)
def test_the_change_of_the_weight_is_the_weight_with_the_new_coefficients_less_the_old(out, fan_in, seed):
    u, p0, vh = factorize(random(out, fan_in, seed=seed, dtype=torch.float64))
    delta = random(len(p0), seed=seed + 1, dtype=torch.float64)
    expected = reference.sum_of_terms(u, p0 + delta, vh) - reference.sum_of_terms(u, p0, vh)
    torch.testing.assert_close(weight_change(u, delta, vh), expected, rtol=1e-10, atol=1e-12)


def test_no_change_of_the_coefficients_is_exactly_no_change_of_the_weight():
    u, p, vh = factorize(random(8, 12))
    assert not weight_change(u, torch.zeros_like(p), vh).any()


@pytest.mark.parametrize("delta_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_change_is_formed_in_float32_or_wider_under_autocast_too(delta_dtype):
    u, p, vh = factorize(random(8, 12))
    delta = (0.1 * p).to(delta_dtype)
    wanted = weight_change(u, delta, vh)
    with torch.autocast("cpu", torch.bfloat16):
        found = weight_change(u, delta, vh)
    assert found.dtype == (torch.float64 if delta_dtype == torch.float64 else torch.float32)
    assert torch.equal(found, wanted)


def test_the_change_has_a_shape_on_the_meta_device():
    u, p, vh = (torch.empty(shape, device="meta") for shape in [(8, 5), (5,), (5, 12)])
    assert weight_change(u, p, vh).shape == (8, 12)


def test_shapes_that_would_broadcast_in_silence_are_refused_in_the_checked_run():
    u, _, vh = factorize(random(8, 12))
    with pytest.raises(Exception, match="rank"):
        recompose(u, torch.ones(1), vh)


def test_factors_unpack_in_the_order_of_the_product():
    assert Factors._fields == ("u", "p", "vh")


def test_the_shapes_in_the_signatures_are_checked_in_the_test_run():
    u, vh = torch.ones(4, 3), torch.ones(3, 5)
    assert recompose(u, torch.ones(3), vh).shape == (4, 5)
    with pytest.raises(jaxtyping.TypeCheckError, match="recompose"):
        recompose(u, torch.ones(1), vh)  # It would be broadcast in silence.
