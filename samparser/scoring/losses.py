"""Segmentation loss of SAM-PARSER's Eq. 5: binary cross-entropy, focal loss and soft Dice, per instance.

The same equation pixel by pixel, in a few lines of Python floats, is `tests/reference/losses.py`; the tests compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """The loss and its three terms, each a scalar tensor; `total` is what to differentiate.

    The terms are unweighted: `total = (1 - lambda_focal) * ce + lambda_focal * focal + dice`.
    """

    total: Tensor
    ce: Tensor
    focal: Tensor
    dice: Tensor


def segmentation_loss(
    logits: Tensor,
    targets: Tensor,
    instance_valid: Tensor,
    pixel_valid: Tensor | None = None,
    *,
    lambda_focal: float,
    gamma: float = 2.0,
    alpha: float | None = 0.25,
    dice_smooth: float = 1.0,
) -> LossTerms:
    r"""Return the loss of SAM-PARSER (Eq. 5), a mean over the pixels of an instance, then over the instances.

    With `s = sigmoid(logit)`, target `t` and the sums running over the valid pixels of one instance:

        ce    = mean(-t log s - (1 - t) log(1 - s))
        focal = mean(a_t (1 - s_t)^gamma * ce),  s_t = t s + (1 - t)(1 - s),  a_t = t alpha + (1 - t)(1 - alpha)
        dice  = 1 - (2 sum(s t) + dice_smooth) / (sum(s) + sum(t) + dice_smooth)
        total = (1 - lambda_focal) * ce + lambda_focal * focal + dice

    Every instance weighs the same, whatever its size and whichever image it is in. An instance without a single valid
    pixel counts as not valid. With no valid instance at all, every term is zero and still has a gradient (of zeros),
    so that a training step on an empty image neither fails nor moves a weight.

    Half-precision logits are computed in float32, also under autocast; float64 stays float64. What padded instances
    and invalid pixels hold is ignored, not-a-number included. The gradient is computed beside the loss; a second
    derivative is refused.

    Args:
        logits: (B, N, h, w), the model's raw output, any floating dtype.
        targets: (B, N, H, W), bool, or numbers from 0 to 1 (soft masks, e.g. a mask averaged down). Where they are
            larger than the logits, the logits are enlarged to them, bilinearly, a few instances at a time: masks at
            input size cost no more memory than masks at the logits' size.
        instance_valid: (B, N) bool, False for the rows that pad an image to N instances.
        pixel_valid: (B, H, W) bool, False in the padding of the image and in void areas; weights from 0 to 1 serve too.
        lambda_focal: The share of the focal loss, from 0 to 1. The paper: 0 for single-instance scenes such as
            medical slices. At 0 the focal term is not computed and is reported as zero.
        gamma: How strongly the focal loss turns away from pixels that are already right; 0 makes it the cross-entropy
            weighted by alpha.
        alpha: Weight of the foreground in the focal loss, `1 - alpha` for the background. 0.25 is the choice of
            Lin et al. (https://arxiv.org/abs/1708.02002); None leaves both at 1.
        dice_smooth: Added to numerator and denominator of Dice, in pixels, so that an empty target is defined.

    Raises:
        ValueError: Shapes do not fit, a number is outside its range, or targets go beyond 1 (masks of 0 and 255).
    """
    _check(logits, targets, instance_valid, pixel_valid)
    _check_settings(lambda_focal, gamma, alpha, dice_smooth)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    equation = _Equation(lambda_focal, gamma, alpha, dice_smooth)
    with torch.autocast(logits.device.type, enabled=False):
        # Before the loss: the gradient that it keeps is float32 then, and becomes half precision once a GradScaler has
        # scaled it. That of one pixel in a million is below float16's smallest number.
        total, ce, focal, dice = _Loss.apply(logits.to(dtype), targets, instance_valid, pixel_valid, equation)
    return LossTerms(total, ce, focal, dice)


CHUNK_PIXELS = 2**20
"""Instances are worked on together up to this many pixels: one mask of 1024 x 1024, or sixteen of 256 x 256."""


class _Loss(torch.autograd.Function):
    """The loss, with its gradient computed beside it.

    Autograd would keep a dozen maps of every instance at the size of the targets until the backward pass. Here a few
    instances at a time are enlarged, compared and forgotten; what stays is the gradient at the size of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        instance_valid: Tensor,
        pixel_valid: Tensor | None,
        equation: _Equation,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the whole loss and its three terms; compute the gradient as well where the logits need one."""
        height, width = targets.shape[-2:]
        counted, on_host = instance_valid.bool(), logits.device.type == "cpu"
        if (
            pixel_valid is not None
            and on_host
            and bool(pixel_valid.all() if pixel_valid.dtype == torch.bool else (pixel_valid == 1).all())
        ):
            pixel_valid = None  # nothing to leave out, which saves a third of the time
        if pixel_valid is not None:
            counted = counted & pixel_valid.flatten(1).any(1)[:, None]
        chosen, number = _chosen(counted)
        scale = 1 / number
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        sums = logits.new_zeros(3)
        for images, rows in (part.unbind(1) for part in chosen.split(max(1, CHUNK_PIXELS // max(1, height * width)))):
            x = logits[images, rows]
            t = targets[images, rows].to(x.dtype)
            weight = None if pixel_valid is None else pixel_valid[images]
            left_out = None if on_host else ~counted[images, rows][:, None, None]
            if left_out is not None:
                x, t = x.masked_fill(left_out, 0), t.masked_fill(left_out, 0)
                weight = None if weight is None else weight.masked_fill(left_out, 1)
            if x.shape[-2:] != (height, width):
                x = F.interpolate(x[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
            terms, slope = equation.apply(x, t, weight, with_gradient=gradient is not None)
            if left_out is not None:
                terms = terms.masked_fill(left_out.flatten(), 0)
                slope = None if slope is None else slope.masked_fill_(left_out, 0)
            sums += terms.sum(1)
            if gradient is not None and slope is not None:
                gradient[images, rows] = _gathered(slope, gradient.shape[-2:]) * scale
        ce, focal, dice = (sums * scale).unbind()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(ce, focal, dice)
        return (1 - equation.lambda_focal) * ce + equation.lambda_focal * focal + dice, ce, focal, dice

    @staticmethod
    def backward(ctx: Any, total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the kept gradient times that of the whole loss; the terms are for the log and have none."""
        if torch.is_grad_enabled():
            raise RuntimeError("segmentation_loss has no second derivative: call backward without create_graph=True.")
        (gradient,) = ctx.saved_tensors
        return gradient * total, None, None, None, None


def _chosen(counted: Tensor) -> tuple[Tensor, Tensor | int]:
    """Return the places (n, 2) of the instances to compute, image and row, and how many of them count.

    On the CPU they are those that count. To ask an accelerator for these would wait until it has done all that it was
    given before, so there every instance is computed, and those that do not count are left out of the sums.
    """
    if counted.device.type == "cpu":
        chosen = counted.nonzero()
        return chosen, max(len(chosen), 1)
    places = torch.arange(counted.numel(), device=counted.device)
    rows = max(1, counted.shape[1])
    return torch.stack([places // rows, places % rows], 1), counted.sum().clamp(min=1)


def _gathered(slope: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the derivative (k, h, w) by logits of `size` from that by the enlarged ones (k, H, W).

    Bilinear enlargement is a matrix along each side; two products with them take half the time of torch's backward.
    """
    if slope.shape[-2:] == size:
        return slope
    rows, columns = (
        F.interpolate(torch.eye(small, dtype=slope.dtype, device=slope.device)[None], large, mode="linear")[0]
        for small, large in zip(size, slope.shape[-2:], strict=True)
    )
    return rows @ slope @ columns.T


@dataclass(frozen=True)
class _Equation:
    """Eq. 5 with its numbers, and its derivative."""

    lambda_focal: float
    gamma: float
    alpha: float | None
    dice_smooth: float

    def apply(
        self, x: Tensor, t: Tensor, weight: Tensor | None, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return terms (3, k) of k instances, and the derivative (k, h, w) of each one's total by its logits.

        `x` and `t` (k, h, w) are overwritten: at input size a map takes 4 MB, so few are held at one time.
        `weight` (k, h, w) is bool or from 0 to 1.
        """
        if weight is None:
            pixels = x.new_full(x.shape[:1], x.shape[-2] * x.shape[-1])
        else:
            # Selecting before computing keeps a not-a-number in a void area out of the sums and of their gradients.
            void = ~weight if weight.dtype == torch.bool else weight <= 0
            x.masked_fill_(void, 0)
            t.masked_fill_(void, 0)
            pixels = weight.sum((-2, -1), dtype=x.dtype)
        s = torch.sigmoid(x)
        ce = F.softplus(x, threshold=40).addcmul_(x, t, value=-1)
        mean_ce = _weighted_sum(ce, weight) / pixels
        areas = _weighted_sum(s + t, weight) + self.dice_smooth
        dice = 1 - (2 * _weighted_sum(s * t, weight) + self.dice_smooth) / areas
        if with_gradient:
            # of Dice, -s (1 - s) (2 t - (1 - dice)) / areas, and of the cross-entropy, s - t
            slope = torch.mul(t, -2, out=x).add_((1 - dice)[:, None, None]).div_(areas[:, None, None])
            slope.mul_(s).addcmul_(slope, s, value=-1)
            for sign, part in ((1, s), (-1, t)):
                slope.addcmul_(part, (sign * (1 - self.lambda_focal) / pixels)[:, None, None])
        mean_focal = torch.zeros_like(mean_ce)
        if self.lambda_focal > 0:
            focal, focal_slope = self._focal(s, t, ce, with_gradient)
            mean_focal = _weighted_sum(focal, weight) / pixels
            if with_gradient:
                slope.addcmul_(focal_slope, (self.lambda_focal / pixels)[:, None, None])
        if with_gradient and weight is not None:
            slope.mul_(weight)
        return torch.stack([mean_ce, mean_focal, dice]), slope if with_gradient else None

    def _focal(self, s: Tensor, t: Tensor, ce: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Return the focal loss of each pixel, which takes the place of `ce`, and its derivative by the logit."""
        # 1 - s_t, also for soft targets. At 0 the power has an infinite slope for gamma < 1; the clamp gives saturated
        # pixels no gradient instead.
        missed = (s * t).mul_(-2).add_(s).add_(t).clamp_(min=torch.finfo(s.dtype).tiny)
        power = missed.pow(self.gamma)
        if self.alpha is not None:
            power.mul_((t * (2 * self.alpha - 1)).add_(1 - self.alpha))
        focal = ce.mul_(power)
        if not with_gradient:
            return focal, power
        # power' ce + power ce', where missed' = (1 - 2 t) s (1 - s) and ce' = s - t
        slope = missed.reciprocal_().mul_(focal).mul_(self.gamma)
        slope.addcmul_(slope, t, value=-2).mul_(s).addcmul_(slope, s, value=-1)
        return focal, slope.addcmul_(power, s).addcmul_(power, t, value=-1)


def _weighted_sum(values: Tensor, weight: Tensor | None) -> Tensor:
    return (values if weight is None else values * weight).sum((-2, -1))


def _check(logits: Tensor, targets: Tensor, instance_valid: Tensor, pixel_valid: Tensor | None) -> None:
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (B, N, h, w); got {logits.dtype} of shape {tuple(logits.shape)}. "
            "The model's pred_masks are (B, N, 1, h, w): pass pred_masks[:, :, 0]."
        )
    height, width = logits.shape[-2:]
    if targets.shape[:2] != logits.shape[:2] or targets.ndim != 4:
        raise ValueError(
            f"targets must have shape {(*logits.shape[:2], 'H', 'W')} to go with logits of shape "
            f"{tuple(logits.shape)}; got {tuple(targets.shape)}."
        )
    if targets.shape[-2] * width != targets.shape[-1] * height:
        raise ValueError(
            f"targets of {targets.shape[-2]} x {targets.shape[-1]} pixels cannot be compared with logits of {height} x "
            f"{width}: another shape. SAM's logits cover its padded input; pad the masks as the processor pads images."
        )
    expected = {"instance_valid": tuple(logits.shape[:2])}
    given = {"instance_valid": instance_valid}
    if pixel_valid is not None:
        expected["pixel_valid"], given["pixel_valid"] = (logits.shape[0], *targets.shape[-2:]), pixel_valid
    for name, tensor in given.items():
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} to go with logits of shape {tuple(logits.shape)} and targets "
                f"of shape {tuple(targets.shape)}; got {tuple(tensor.shape)}."
            )
    if targets.dtype != torch.bool and targets.numel():
        low, high = targets.min().item(), targets.max().item()
        if low < 0 or high > 1:
            raise ValueError(
                f"targets must be bool or lie from 0 to 1; got {targets.dtype} from {low:g} to {high:g}. "
                "For masks of 0 and 255 pass masks > 0."
            )


def _check_settings(lambda_focal: float, gamma: float, alpha: float | None, dice_smooth: float) -> None:
    if not 0 <= lambda_focal <= 1:
        raise ValueError(f"lambda_focal must be from 0 to 1, the share of the focal loss in Eq. 5; got {lambda_focal}.")
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or more; got {gamma}.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, or None for no class weights; got {alpha}.")
    if dice_smooth <= 0:
        raise ValueError(f"dice_smooth must be above 0, or Dice is undefined for an empty target; got {dice_smooth}.")
