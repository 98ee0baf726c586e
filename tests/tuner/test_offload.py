"""Weights that accelerate offloads: layers in memory are adapted, offloaded ones refused by name."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from transformers import SamModel

from samparser import SVDCoefficientConfig
from tests.conftest import make_tiny_sam
from tests.tuner.models import batch, layers, make, move, output, saved, with_adapters
from tests.tuner.test_saving import masks

CPU = torch.device("cpu")


@pytest.mark.parametrize("where", ["cpu", "disk", "one module"])
def test_offloaded_layers_are_refused_by_name_and_the_model_works_on(where, tmp_path):
    model, x = make("ConvNet"), batch("ConvNet")
    expected = output(model, x)
    if where == "cpu":
        cpu_offload(model, CPU)
    elif where == "disk":
        disk_offload(model, tmp_path, CPU)
    else:
        places = {"stem": "cpu", "neck": "disk", "bottleneck": "cpu", "head": "cpu"}
        dispatch_model(model, places, offload_dir=tmp_path, main_device="cpu")
    with pytest.raises(ValueError, match=r"Cannot adapt neck.0, neck.2: accelerate keeps.*device_map that keeps"):
        get_peft_model(model, SVDCoefficientConfig(target_modules=["neck"]))
    with pytest.raises(ValueError, match="Cannot adapt"):
        inject_adapter_in_model(SVDCoefficientConfig.from_pretrained(saved(tmp_path)), model)
    assert not hasattr(model.neck[0], "svd_coefficient_p")
    torch.testing.assert_close(output(model, x), expected)


def test_a_hook_of_a_module_that_contains_the_layer_counts():
    model = make("ConvNet")
    cpu_offload(model, CPU, preload_module_classes=["Sequential"])
    with pytest.raises(ValueError, match=r"Cannot adapt neck.0, neck.2"):
        get_peft_model(model, SVDCoefficientConfig(target_modules=["neck"]))


def test_a_layer_that_is_offloaded_later_says_so_instead_of_computing():
    model = with_adapters("ConvNet", "a")
    cpu_offload(model, CPU)
    with pytest.raises(ValueError, match=r"neck.0: accelerate offloaded the weight.*device_map that keeps"):
        output(model, batch("ConvNet"))
    with pytest.raises(ValueError, match=r"Cannot adapt neck.0"):
        model.add_adapter("b", SVDCoefficientConfig(target_modules=["neck"]))
    assert all(list(layer.states) == ["a"] for layer in layers(model))


def test_a_base_weight_without_values_says_so_instead_of_computing():
    with torch.device("meta"):
        empty = make("MLP")
    model = get_peft_model(empty, SVDCoefficientConfig(target_modules=["lin0"]))
    with pytest.raises(ValueError, match=r"lin0: the base weight is on the meta device.*assign=True"):
        output(model.base_model.model.lin0, batch("MLP"))


def test_a_sam_whose_encoder_is_on_disk_takes_adapters_of_its_neck_in_every_way(tmp_path, monkeypatch):
    # PEFT drops the leading slash of the offloaded file's path and so writes it below the working directory.
    monkeypatch.chdir(tmp_path)
    make_tiny_sam().save_pretrained(tmp_path / "base")
    tuned = get_peft_model(make_tiny_sam(), SVDCoefficientConfig(target_modules=["neck"]))
    move(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = masks(tuned)
    places = dict.fromkeys(("prompt_encoder", "mask_decoder", "shared_image_embedding"), "cpu")
    places |= {f"vision_encoder.{part}": "cpu" for part in ("patch_embed", "neck", "pos_embed")}
    places["vision_encoder.layers"] = "disk"

    def on_disk() -> SamModel:
        return SamModel.from_pretrained(tmp_path / "base", device_map=copy.copy(places), offload_folder=tmp_path / "o")

    assert on_disk().vision_encoder.layers[0].attn.qkv.weight.is_meta
    by_transformers = on_disk()
    by_transformers.load_adapter(tmp_path / "adapter")
    by_hand = get_peft_model(on_disk(), SVDCoefficientConfig(target_modules=["neck"]))
    by_hand.load_adapter(tmp_path / "adapter", "second")
    by_hand.set_adapter("second")
    # PEFT distributes the model again when it loads the first adapter, and needs to be told where to, by its own names.
    again = {f"base_model.model.{name}": place for name, place in places.items()}
    by_peft = PeftModel.from_pretrained(on_disk(), tmp_path / "adapter", device_map=again, offload_dir=tmp_path / "p")
    for model in (by_transformers, by_hand, by_peft):
        torch.testing.assert_close(masks(model), expected, rtol=1e-4, atol=1e-5)
