"""The loss against a loop over pixels, torchmetrics, and finite differences."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samparser.scoring import losses, segmentation_loss
from tests.reference import losses as reference


def random_case(seed, dtype=torch.float64, shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=dtype)
    targets = torch.rand(shape, generator=generator) > 0.6
    instance_valid = torch.rand(shape[:2], generator=generator) > 0.3
    pixel_valid = torch.rand((shape[0], *shape[2:]), generator=generator) > 0.2
    return logits, targets, instance_valid, pixel_valid


def values(terms):
    return [float(getattr(terms, field.name).detach()) for field in dataclasses.fields(terms)]


@pytest.mark.parametrize(("lambda_focal", "gamma", "alpha"), [(0.5, 2.0, 0.25), (1.0, 0.0, None), (0.25, 1.5, 0.9)])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("seed", range(3))
def test_each_term_equals_a_loop_over_pixels_in_float64(seed, soft, lambda_focal, gamma, alpha):
    logits, targets, instance_valid, pixel_valid = random_case(seed)
    if soft:
        targets = torch.rand(targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    terms = segmentation_loss(
        logits, targets, instance_valid, pixel_valid, lambda_focal=lambda_focal, gamma=gamma, alpha=alpha, dice_smooth=2
    )
    expected = reference.segmentation_loss(
        logits.tolist(),
        targets.to(float).tolist(),
        instance_valid.tolist(),
        pixel_valid.tolist(),
        lambda_focal,
        gamma,
        alpha,
        2,
    )
    assert values(terms) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("instances_at_once", [1, 2, 100])
def test_smaller_logits_are_enlarged_to_the_targets_however_many_instances_are_worked_on_at_once(
    instances_at_once, monkeypatch
):
    monkeypatch.setattr(losses, "CHUNK_PIXELS", instances_at_once * 12 * 15)
    small = random_case(8)[0].requires_grad_()
    _, targets, instance_valid, pixel_valid = random_case(9, shape=(2, 3, 12, 15))
    rest = (targets, instance_valid, pixel_valid)
    terms = segmentation_loss(small, *rest, lambda_focal=0.3)
    (gradient,) = torch.autograd.grad(terms.total, small)
    large = torch.nn.functional.interpolate(small, (12, 15), mode="bilinear", align_corners=False)
    expected = segmentation_loss(large, *rest, lambda_focal=0.3)
    (expected_gradient,) = torch.autograd.grad(expected.total, small)
    assert values(terms) == pytest.approx(values(expected), rel=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


def test_what_is_kept_until_the_backward_pass_has_the_size_of_the_logits():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        logits = torch.zeros(1, 3, 16, 16, requires_grad=True)
        targets = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
        segmentation_loss(logits, targets, torch.ones(1, 3, dtype=torch.bool), lambda_focal=0.5)
    assert kept == [(1, 3, 16, 16)]


def test_a_second_derivative_is_refused():
    logits, targets, instance_valid, pixel_valid = random_case(0)
    logits.requires_grad_()
    total = segmentation_loss(logits, targets, instance_valid, pixel_valid, lambda_focal=0.5).total
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_without_focal_loss_the_term_is_zero_and_the_rest_is_cross_entropy_and_dice():
    logits, targets, instance_valid, pixel_valid = random_case(0)
    plain = segmentation_loss(logits, targets, instance_valid, pixel_valid, lambda_focal=0)
    mixed = segmentation_loss(logits, targets, instance_valid, pixel_valid, lambda_focal=0.5)
    assert plain.focal == 0
    assert mixed.focal > 0
    assert plain.total == plain.ce + plain.dice
    assert (plain.ce, plain.dice) == (mixed.ce, mixed.dice)


def test_a_hard_prediction_has_the_dice_of_torchmetrics():
    from torchmetrics.functional.classification import binary_f1_score

    _, targets, _, _ = random_case(3, shape=(1, 1, 16, 16))
    predicted = random_case(4, shape=(1, 1, 16, 16))[1]
    logits = torch.where(predicted, 60.0, -60.0).double()
    valid = torch.ones(1, 1, dtype=torch.bool)
    dice = segmentation_loss(logits, targets, valid, lambda_focal=0, dice_smooth=1e-9).dice
    assert float(1 - dice) == pytest.approx(float(binary_f1_score(predicted.int(), targets.int())), abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradients_equal_finite_differences(gamma):
    logits, targets, instance_valid, pixel_valid = random_case(1, shape=(2, 2, 3, 3))
    logits.requires_grad_()

    def total(x):
        return segmentation_loss(
            x, targets, instance_valid, pixel_valid, lambda_focal=0.5, gamma=gamma, alpha=0.25
        ).total

    assert torch.autograd.gradcheck(total, (logits,))


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), filler=st.sampled_from([0.0, 1e4, float("nan"), float("inf")]))
def test_padded_instances_and_invalid_pixels_change_neither_loss_nor_gradient(seed, filler):
    logits, targets, instance_valid, pixel_valid = random_case(seed, dtype=torch.float32)
    ignored = ~(instance_valid[..., None, None] & pixel_valid[:, None]).expand(logits.shape)

    def run(x, t):
        x = x.clone().requires_grad_()
        total = segmentation_loss(x, t, instance_valid, pixel_valid, lambda_focal=0.5).total
        total.backward()
        return total.detach(), x.grad

    clean, clean_gradient = run(logits, targets)
    filled, gradient = run(torch.where(ignored, filler, logits), targets ^ ignored)
    assert torch.equal(clean, filled)
    assert torch.equal(clean_gradient, gradient)
    assert (gradient[ignored] == 0).all()


def test_the_loss_of_a_batch_is_the_mean_over_its_valid_instances():
    logits, targets, _, pixel_valid = random_case(5)
    instance_valid = torch.tensor([[True, False, False], [True, True, True]])
    together = segmentation_loss(logits, targets, instance_valid, pixel_valid, lambda_focal=0.5)
    alone = [
        segmentation_loss(
            logits[b : b + 1, n : n + 1],
            targets[b : b + 1, n : n + 1],
            torch.ones(1, 1, dtype=torch.bool),
            pixel_valid[b : b + 1],
            lambda_focal=0.5,
        )
        for b, n in itertools.product(range(2), range(3))
        if instance_valid[b, n]
    ]
    assert len(alone) == 4
    assert values(together) == pytest.approx([sum(column) / 4 for column in zip(*map(values, alone), strict=True)])


def test_instances_of_an_image_without_a_valid_pixel_do_not_enter_the_mean():
    logits, targets, _, pixel_valid = random_case(6)
    pixel_valid[1] = False
    both = segmentation_loss(logits, targets, torch.ones(2, 3, dtype=torch.bool), pixel_valid, lambda_focal=0.5)
    first = segmentation_loss(
        logits[:1], targets[:1], torch.ones(1, 3, dtype=torch.bool), pixel_valid[:1], lambda_focal=0.5
    )
    assert values(both) == pytest.approx(values(first), rel=1e-12)


@pytest.mark.parametrize("case", ["no valid instance", "no instance", "no valid pixel"])
def test_an_empty_batch_gives_zero_with_a_gradient_of_zeros(case):
    logits, targets, instance_valid, pixel_valid = random_case(0)
    if case == "no instance":
        logits, targets, instance_valid = logits[:, :0], targets[:, :0], instance_valid[:, :0]
    elif case == "no valid instance":
        instance_valid = torch.zeros_like(instance_valid)
    else:
        pixel_valid = torch.zeros_like(pixel_valid)
    logits = logits.clone().requires_grad_()
    terms = segmentation_loss(logits, targets, instance_valid, pixel_valid, lambda_focal=0.5)
    terms.total.backward()
    assert values(terms) == [0, 0, 0, 0]
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_gradient_of_float16_logits_is_scaled_before_it_is_float16():
    # Each of 256 x 256 pixels of 40 instances has a gradient of about 1e-7: less than float16 can tell apart.
    logits = torch.linspace(-2, 2, 256).repeat(1, 40, 256, 1).half().requires_grad_()
    targets = torch.zeros(1, 40, 256, 256, dtype=torch.bool)
    everyone, scale = torch.ones(1, 40, dtype=torch.bool), 2.0**16
    (segmentation_loss(logits, targets, everyone, lambda_focal=0.5).total * scale).backward()
    exact = logits.detach().double().requires_grad_()
    segmentation_loss(exact, targets, everyone, lambda_focal=0.5).total.backward()
    assert logits.grad.dtype == torch.float16
    torch.testing.assert_close(logits.grad.double() / scale, exact.grad, rtol=2e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_computed_in_float32_also_under_autocast(dtype):
    logits, targets, instance_valid, pixel_valid = random_case(2, shape=(1, 4, 64, 64))
    half = logits.to(dtype)
    exact = segmentation_loss(half.double(), targets, instance_valid, pixel_valid, lambda_focal=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = segmentation_loss(half, targets, instance_valid, pixel_valid, lambda_focal=0.5)
    assert terms.total.dtype == torch.float32
    assert values(terms) == pytest.approx(values(exact), rel=1e-6)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[[[-1e4, 1e4], [-200.0, 200.0]]]], requires_grad=True)
    targets = torch.tensor([[[[True, True], [False, False]]]])
    for gamma in (0.0, 0.5, 2.0):
        logits.grad = None
        total = segmentation_loss(
            logits, targets, torch.ones(1, 1, dtype=torch.bool), lambda_focal=0.5, gamma=gamma
        ).total
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(logits.grad).all()


def test_pixel_weights_of_one_half_everywhere_leave_the_mean_as_it_is():
    logits, targets, instance_valid, _ = random_case(7)
    half = segmentation_loss(logits, targets, instance_valid, torch.full((2, 4, 5), 0.5), lambda_focal=0.5)
    full = segmentation_loss(logits, targets, instance_valid, lambda_focal=0.5)
    assert float(half.ce) == pytest.approx(float(full.ce), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(1, 2, 1, 4, 4)}, r"shape \(1, 2, 1, 4, 4\).*pred_masks\[:, :, 0\]"),
        ({"logits": torch.zeros(1, 2, 4, 4, dtype=torch.int64)}, r"floating point.*torch.int64"),
        (
            {"targets": torch.zeros(1, 3, 4, 4, dtype=torch.bool)},
            r"targets must have shape \(1, 2, 'H', 'W'\).*\(1, 3, 4, 4\)",
        ),
        (
            {"targets": torch.zeros(1, 2, 8, 6, dtype=torch.bool)},
            r"targets of 8 x 6 pixels cannot be compared with logits of 4 x 4.*pad the masks",
        ),
        ({"targets": torch.full((1, 2, 4, 4), 255, dtype=torch.uint8)}, r"torch.uint8 from 255 to 255.*masks > 0"),
        ({"instance_valid": torch.ones(2, 2, dtype=torch.bool)}, r"instance_valid must have shape \(1, 2\).*\(2, 2\)"),
        ({"pixel_valid": torch.ones(1, 2, 4, 4)}, r"pixel_valid must have shape \(1, 4, 4\).*\(1, 2, 4, 4\)"),
        ({"lambda_focal": 1.5}, r"lambda_focal must be from 0 to 1.*1\.5"),
        ({"gamma": -1.0}, r"gamma must be 0 or more; got -1"),
        ({"alpha": 2.0}, r"alpha must be from 0 to 1.*2\.0"),
        ({"dice_smooth": 0.0}, r"dice_smooth must be above 0.*0\.0"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(change, message):
    arguments = {
        "logits": torch.zeros(1, 2, 4, 4),
        "targets": torch.zeros(1, 2, 4, 4, dtype=torch.bool),
        "instance_valid": torch.ones(1, 2, dtype=torch.bool),
        "lambda_focal": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        segmentation_loss(**{**arguments, **change})
