"""Eval mode for a while, and each module's own mode afterwards, also after an error."""

import threading

import pytest
import torch
from torch import nn

from samparser.sam.modes import evaluating, neck_input


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.Linear(1, 1))).train()
    model[1].eval()
    model[1][0].train()
    modes = [module.training for module in model.modules()]
    assert modes == [True, True, False, True, False]

    def fail_inside():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_a_model_stays_in_eval_mode_until_the_last_thread_is_done():
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)).train()
    model[1].eval()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with evaluating(model):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    with evaluating(model[0]):
        thread.start()
        assert entered.wait(30)
        assert not model[0].training
    assert not model[0].training
    leave.set()
    thread.join()
    assert [module.training for module in model.modules()] == [True, True, False]


@torch.no_grad()
def test_a_forward_ends_before_the_neck_with_what_enters_it(tiny_sam):
    encoder, ran = tiny_sam.vision_encoder, []
    pixels = torch.ones(1, 3, 64, 64)
    encoder.neck.conv1.register_forward_hook(lambda *_: ran.append(1))
    entering = neck_input(encoder.neck, lambda: encoder(pixels))
    assert ran == []
    assert not encoder.neck._forward_pre_hooks
    assert torch.equal(encoder.neck(entering), encoder(pixels).last_hidden_state)


@torch.no_grad()
def test_other_threads_forwards_go_on_through_the_neck(tiny_sam):
    encoder, found = tiny_sam.vision_encoder, []
    one, two = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    expected = encoder(two).last_hidden_state

    @torch.no_grad()
    def elsewhere():
        found.append(encoder(two).last_hidden_state)

    def forward():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        encoder(one)

    entering = neck_input(encoder.neck, forward)
    assert torch.equal(found[0], expected)
    assert torch.equal(encoder.neck(entering), encoder(one).last_hidden_state)


def test_an_encoder_that_does_not_call_its_neck_is_named(tiny_sam):
    with pytest.raises(RuntimeError, match="did not call its neck, a SamVisionNeck"):
        neck_input(tiny_sam.vision_encoder.neck, lambda: None)
    assert not tiny_sam.vision_encoder.neck._forward_pre_hooks
