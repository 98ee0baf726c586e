"""Every way of training on a model on another device than the CPU: built there, trained, saved, loaded and merged."""

import pytest
import torch

from samparser.methods import METHODS, build, load_trained, merged, save_trained
from tests.conftest import make_tiny_sam
from tests.methods.conftest import masks, train_a_little
from tests.second_device import assert_same

# One of each way of training.
NAMES = ("decoder", "full", "lora-qkv", "lora-neck", "adapter", "adapter-houlsby", "samparser", "bases", "expansion")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_from_building_to_merging(gpu, tiny_inputs, tiny_sam_folder, tmp_path, name):
    def run(device):
        torch.manual_seed(0)
        inputs = {key: value.to(device) for key, value in tiny_inputs.items()}
        base = make_tiny_sam().to(device)
        base.name_or_path = str(tiny_sam_folder)
        model = build(name, base)
        train_a_little(model, inputs, steps=1)
        found = [masks(model, inputs)]
        if METHODS[name].mergeable:
            found.append(masks(merged(model), inputs))
        folder = tmp_path / str(device)
        save_trained(model, folder)
        loaded = load_trained(make_tiny_sam().to(device), folder)
        return [*found, masks(loaded, inputs)]

    for there, here in zip(run(gpu), run("cpu"), strict=True):
        assert_same(there, here)
