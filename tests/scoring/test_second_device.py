"""The loss of logits on another device than the CPU: the same, without asking the device for anything."""

import dataclasses

import pytest
import torch

from samparser.scoring import losses, segmentation_loss
from tests.scoring.test_losses import random_case
from tests.second_device import watching


def loss_and_gradient(device, logits, *rest):
    logits = logits.clone().to(device).requires_grad_()
    terms = segmentation_loss(logits, *(None if part is None else part.to(device) for part in rest), lambda_focal=0.3)
    terms.total.backward()
    return [*(getattr(terms, field.name) for field in dataclasses.fields(terms)), logits.grad]


def cases():
    logits, targets, instance_valid, pixel_valid = random_case(3, torch.float32)
    everyone, nobody = torch.ones_like(instance_valid), torch.zeros_like(instance_valid)
    void = pixel_valid.clone()
    void[0] = False
    beyond = logits.clone()
    beyond[~instance_valid] = float("nan")
    beyond[:, :, 0] = float("inf")
    yield "some count", (logits, targets, instance_valid, pixel_valid)
    yield "all count", (logits, targets, everyone, torch.ones_like(pixel_valid))
    yield "without pixels to leave out", (logits, targets, instance_valid, None)
    yield "none counts", (logits, targets, nobody, pixel_valid)
    yield "an image is void", (logits, targets, everyone, void)
    yield "weights of pixels", (logits, targets, instance_valid, pixel_valid * 0.25)
    no_first_row = pixel_valid.index_fill(1, torch.tensor(0), False)
    yield "not a number in what does not count", (beyond, targets, instance_valid, no_first_row)
    yield "no instance", (logits[:, :0], targets[:, :0], instance_valid[:, :0], pixel_valid)
    larger, valid = (part.repeat_interleave(3, -2).repeat_interleave(3, -1) for part in (targets, pixel_valid))
    yield "larger targets", (logits, larger, instance_valid, valid)


CASES = dict(cases())


@pytest.mark.parametrize("at_once", [1, 100])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loss_is_that_of_the_cpu_without_a_wait_for_the_device(gpu, case, at_once, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_PIXELS", at_once * 20)
    here = loss_and_gradient("cpu", *case)
    with watching() as seen:
        there = loss_and_gradient(gpu, *case)
    assert not seen.waits
    assert {what for _, what in seen.sent} <= {"to"}, "the arguments"
    assert not any(tensor.isnan().any() for tensor in here)
    for one, other in zip(there, here, strict=True):
        assert one.device.type == "cuda"
        torch.testing.assert_close(one.detach().cpu(), other.detach(), rtol=1e-5, atol=1e-6)


def test_soft_targets_are_looked_at_before_they_are_used(gpu):
    logits, _, instance_valid, pixel_valid = random_case(3, torch.float32)
    soft = torch.rand(logits.shape).to(gpu)
    with watching() as seen:
        segmentation_loss(logits.to(gpu), soft, instance_valid.to(gpu), pixel_valid.to(gpu), lambda_focal=0.3)
    assert seen.waits == {("scoring/losses.py:_check", "item"): 2} or not seen.waits  # a GPU is not watched
    with pytest.raises(ValueError, match="from 0 to 255"):
        segmentation_loss(logits.to(gpu), 255 * soft.round(), instance_valid.to(gpu), lambda_focal=0.3)
