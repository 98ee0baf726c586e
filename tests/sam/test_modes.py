"""Eval mode for a while, and each module's own mode afterwards, also after an error."""

import threading

import pytest
import torch
from torch import nn

from samparser.sam.modes import catching_neck_input, evaluating


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


def test_only_the_own_threads_forwards_are_caught(tiny_sam):
    encoder = tiny_sam.vision_encoder
    one, two = torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)
    with torch.no_grad(), catching_neck_input(encoder.neck) as caught:
        thread = threading.Thread(target=encoder, args=(two,))
        thread.start()
        thread.join()
        assert caught == []
        encoder(one)
    assert len(caught) == 1
    assert not encoder.neck._forward_pre_hooks
