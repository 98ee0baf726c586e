"""Eval mode for a while, and each module's own mode afterwards, also after an error."""

import pytest
import torch
from torch import nn

from samparser.sam.modes import evaluating


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
