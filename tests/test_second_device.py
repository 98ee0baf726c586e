"""The stand-in for a second device: it refuses what a GPU refuses, and sees every wait."""

import pytest
import torch
from torch import nn

from tests.second_device import SecondDeviceTensor, assert_same, second_device, watching


@pytest.fixture
def stand_in(monkeypatch):
    with second_device(monkeypatch) as device:
        yield device


MIXED = {
    "sum": lambda x: x + torch.ones(3),
    "product": lambda x: x @ torch.ones(3, 1),
    "cat": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(2, 3)),
    "in place": lambda x: x.add_(torch.ones(3)),
    "written to": lambda x: x.index_put_((torch.zeros(2, 3, device=x.device) > 0,), torch.ones(6)),
    "on the CPU": lambda x: torch.ones(2, 3).add_(x),
    "convolution": lambda x: nn.Conv2d(3, 2, 1)(x[..., None, None]),
    "assigned": lambda x: setattr(x, "data", torch.ones(2, 3)),
    "backward": lambda x: (x.clone().requires_grad_() * x).backward(torch.ones(2, 3)),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_tensors_of_two_devices_do_not_mix(stand_in, mix):
    x = torch.ones(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match=r"on cuda:0 and on cpu|values on cpu"):
        mix(x)


def test_what_a_gpu_takes_from_the_cpu_is_taken(stand_in):
    x = torch.ones(2, 3, device=stand_in)
    with watching() as seen:
        results = [x + torch.tensor(1.0), x[torch.tensor([0])], x.copy_(torch.zeros(2, 3))]
    assert not seen.waits
    assert sorted(what for _, what in seen.sent.elements()) == ["copy_", "index"]  # a number is no tensor to send
    for there, here in zip(results, [torch.full((2, 3), 2.0), torch.ones(1, 3), torch.zeros(2, 3)], strict=True):
        assert_same(there, here)


WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy": lambda x: torch.zeros(2, 3).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "range": lambda x: range(x.sum().long()),
}


@pytest.mark.parametrize("ask", WAITS.values(), ids=WAITS)
def test_every_wait_is_seen_once(stand_in, ask):
    x = torch.ones(2, 3, device=stand_in)
    with watching() as seen:
        ask(x)
    assert seen.waits.total() == 1
    ask(x)
    assert seen.waits.total() == 1, "seen after the block"


def test_a_wait_is_put_down_to_the_function_of_the_library_that_asks(stand_in):
    from samparser._hashing import sha256_of

    with watching() as seen:
        sha256_of(torch.ones(2, device=stand_in))
    assert seen.waits == {("_hashing.py:_bytes_of", "to cpu"): 1}


def test_a_step_there_is_that_of_the_cpu_without_a_wait(stand_in):
    def trained(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        x = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4).to(device)
        with watching() as seen:
            for _ in range(2):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        assert not seen.waits
        return [parameter.detach() for parameter in model.parameters()]

    for there, here in zip(trained("cuda"), trained("cpu"), strict=True):
        assert isinstance(there, SecondDeviceTensor)
        assert_same(there, here)


def test_nothing_is_left_of_it_afterwards(monkeypatch):
    with pytest.MonkeyPatch.context() as patch, second_device(patch):
        torch.zeros(2, device="cuda")
    assert type(torch.zeros(2)) is torch.Tensor
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            torch.zeros(2, device="cuda")
