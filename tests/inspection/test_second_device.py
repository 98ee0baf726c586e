"""Looking into adapters of a model on another device than the CPU: the findings are those of the CPU."""

import copy

import pytest
import torch

from samparser import SVDCoefficientConfig
from samparser.inspection import distil, interpolate, layer_moves, similarity
from samparser.inspection.arithmetic import combine, save_combination
from samparser.inspection.leftover import changed_parts
from tests.conftest import make_tiny_sam
from tests.inspection.conftest import NECK, move, tuned


def two_adapters():
    model = tuned(0, expansion="pairs")
    model.add_adapter("b", SVDCoefficientConfig(target_modules=NECK, expansion=None))
    model.set_adapter("b")
    return move(model, 3)


def close(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            close(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    elif hasattr(expected, "__dict__") and not isinstance(expected, torch.nn.Module):
        close(vars(found), vars(expected))


LOOKS = {
    "similarity": lambda model: similarity(model, ["default", "b"]),
    "moves": lambda model: [layer_moves(model, name) for name in ("default", "b")],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_what_is_seen_in_the_coefficients(gpu, look):
    model = two_adapters()
    here = look(model)
    assert here
    close(look(model.to(gpu)), here)


@pytest.mark.parametrize("look", ["interpolate", "combine"])
def test_what_scores_tell(gpu, evaluation, tmp_path, look):
    def run(model, name):
        if look == "interpolate":
            return interpolate(model, "b", evaluation, scales=(0.0, 1.0))
        save_combination(model, {"default": 1.0, "b": -1.0}, tmp_path / name)
        return combine(model, [{"default": 1.0, "b": -1.0}], evaluation)

    model = two_adapters()
    here = run(model, "here")
    close(run(model.to(gpu), "there"), here)


def test_distilling(gpu):
    def run(device):
        base, full = make_tiny_sam().to(device), make_tiny_sam()
        full.vision_encoder.neck.requires_grad_(True)
        full = move(full.requires_grad_(True), 4, modules=0.05).to(device)
        parts = changed_parts(base, full)
        distilled = distil(base, full, rank=3, keep=["mask_decoder"])
        assert {parameter.device.type for parameter in distilled.model.parameters()} == {torch.device(device).type}
        return parts, distilled.layers

    close(run(gpu), run("cpu"))


def test_distilling_a_model_with_an_adapter(gpu):
    model = two_adapters()
    here = distil(make_tiny_sam(), copy.deepcopy(model), rank=3)
    there = distil(make_tiny_sam().to(gpu), model.to(gpu), rank=3)
    close(there.layers, here.layers)
