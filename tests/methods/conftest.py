"""Inputs for a tiny SAM, a step of training, and the names of all methods."""

import copy
import functools

import pytest
import torch

from samparser.methods import METHODS, build
from samparser.tuner import awaited_terms, initialize_expansion
from tests.conftest import TINY_SIZE, make_tiny_sam

ALL = tuple(METHODS)
TRAINING = tuple(name for name in ALL if name != "zero-shot")


def make_inputs() -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 30.0]])
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, TINY_SIZE, TINY_SIZE, generator=generator),
        "input_boxes": boxes.repeat(2, 1, 1),
    }


@pytest.fixture
def tiny_inputs() -> dict[str, torch.Tensor]:
    """Two images, two boxes each, as SamModel's forward takes them."""
    return make_inputs()


def masks(model, inputs) -> torch.Tensor:
    """Mask logits without gradients; (2, 2, 1, h, w)."""
    with torch.no_grad():
        return model(**inputs, multimask_output=False).pred_masks


def objective(model, inputs) -> torch.Tensor:
    """A loss whose gradient reaches every trained tensor of the forward."""
    output = model(**inputs, multimask_output=False)
    return output.pred_masks.square().mean() + output.iou_scores.square().mean()


def choose_terms(model, inputs) -> None:
    """Give an expansion that waits for its directions those of the objective."""
    if awaited_terms(model):
        initialize_expansion(model, [inputs] * 2, objective, show=False)


def train_a_little(model, inputs, steps: int = 2, rate: float = 0.05) -> None:
    """A few steps towards smaller logits; every trained tensor of the forward moves."""
    choose_terms(model, inputs)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model, inputs).backward()
        optimizer.step()
    model.eval()


def tuned_tiny_sam(name: str, **options):
    """A tiny SAM of the test's own that a method has trained for two steps."""
    return copy.deepcopy(shared_tuned_tiny_sam(name, **options))


@functools.cache
def shared_tuned_tiny_sam(name: str, **options):
    """The same for all tests, none of which may change it."""
    torch.manual_seed(0)
    model = build(name, make_tiny_sam(), **options)
    if name != "zero-shot":
        train_a_little(model, make_inputs())
    return model.eval()
