"""Cosines between the changes of adapters."""

import pytest
import torch

from samparser import SVDCoefficientConfig
from samparser.inspection import open_adapters, similarity
from samparser.tuner import SVDCoefficientLayer

from .conftest import move, tuned


def changes(model, name):
    """The change of every weight that any adapter changes, in one vector; formed from weights, layer by layer."""
    model.set_adapter(name)
    layers = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
    return torch.cat([(layer.weight - layer.base_weight).flatten() for layer in layers]).double()


@torch.no_grad()
def test_cosines_are_those_of_the_weights_changes(folders):
    model, _ = open_adapters(list(folders.values()))
    names = list(model.peft_config)
    found = similarity(model, names)
    vectors = {name: changes(model, name) for name in names}
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            expected = torch.cosine_similarity(vectors[first], vectors[second], dim=0)
            assert found.total[i][j] == pytest.approx(float(expected), abs=1e-4)
    assert found.adapters == ("plain", "pairs", "decoder")
    assert set(found.layers) == {"vision_encoder.neck.conv1", "vision_encoder.neck.conv2", "mask_decoder"}
    # Only one of them trained the decoder: nothing to compare it with.
    assert found.layers["mask_decoder"] == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, pytest.approx(1)]]


@torch.no_grad()
def test_a_scaled_adapter_is_alike_a_negative_one_opposite_and_another_layer_unrelated():
    model = tuned(target_modules=["vision_encoder.neck.conv1"])
    model.add_weighted_adapter(["default"], [0.3], "less")
    model.add_weighted_adapter(["default"], [-2.0], "opposite")
    model.add_adapter("elsewhere", SVDCoefficientConfig(target_modules=["vision_encoder.neck.conv2"]))
    model.set_adapter("elsewhere")
    move(model, 3)
    found = similarity(model, ["default", "less", "opposite", "elsewhere"])
    assert found.total[0] == pytest.approx([1, 1, -1, 0], abs=1e-5)
    assert found.layers["vision_encoder.neck.conv2"][0] == [0.0] * 4
    assert "cosine, all layers" in str(found)
    assert "default . opposite" in str(found)


def test_unknown_and_repeated_names_are_refused():
    model = tuned()
    with pytest.raises(ValueError, match=r"no adapter 'other'; there are \['default'\]"):
        similarity(model, ["default", "other"])
    with pytest.raises(ValueError, match="names one twice"):
        similarity(model, ["default", "default"])
