"""Several adapters on one base model, each under a name of its own."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from samparser import SVDCoefficientConfig
from samparser.inspection import adapter_names, open_adapters
from samparser.methods import build, load_model, save_trained
from samparser.tuner import coefficients
from tests.conftest import make_tiny_sam

from .conftest import NECK, move, tuned


def test_every_adapter_computes_what_it_computes_alone(folders):
    model, _ = open_adapters(list(folders.values()))
    assert list(model.peft_config) == ["plain", "pairs", "decoder"]
    assert model.active_adapters == ["plain"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": pixels, "input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])}
    for name, folder in folders.items():
        alone, _ = load_model(folder)
        model.set_adapter(name)
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).pred_masks, alone(**inputs).pred_masks, rtol=0, atol=0)


def test_names_are_different_and_never_the_one_that_is_reserved():
    assert adapter_names(["default", "a/default/adapter", "adapter", "a.b/", "a/b.c", "..."]) == [
        *("default-2", "default-3", "adapter", "a-b", "b-c", "adapter-2")
    ]


def test_what_is_no_adapter_of_coefficients_is_refused_by_name(folders, tiny_sam_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        open_adapters([folders["plain"], "no/such/folder"])
    with pytest.raises(ValueError, match=r"is no adapter but a whole model.*--distil"):
        open_adapters([tiny_sam_folder])
    lora = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["qkv"], r=1))
    save_trained(lora, tmp_path / "lora")
    with pytest.raises(ValueError, match=r"lora holds an adapter of .*LORA; only adapters of SVD coefficients"):
        open_adapters([tmp_path / "lora"])
    save_trained(tuned(bias="all"), tmp_path / "bias")
    with pytest.raises(ValueError, match=r"bias has trained biases of the base model \(bias='all'\)"):
        open_adapters([tmp_path / "bias"])
    with pytest.raises(ValueError, match="There is no adapter to inspect"):
        open_adapters([])


def test_an_adapter_of_another_base_is_refused_beside_the_first_one(folders, tmp_path):
    other = get_peft_model(make_tiny_sam(seed=5), SVDCoefficientConfig(target_modules=NECK))
    save_trained(move(other, 0), tmp_path / "stranger")
    with pytest.raises(ValueError, match=r"stranger cannot be put beside .*plain/adapter: "):
        open_adapters([folders["plain"], tmp_path / "stranger"])
    with pytest.warns(UserWarning, match="is not the one the adapter was trained on"):
        model, _ = open_adapters([folders["plain"], tmp_path / "stranger"], check_base=False)
    assert list(model.peft_config) == ["plain", "stranger"]


def test_a_file_that_was_changed_is_refused_or_taken_on_purpose(folders):
    path = folders["pairs"] / "adapter_model.safetensors"
    tensors = {name: 2 * tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    (folders["pairs"] / "method.json").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"pairs/adapter cannot be put beside .*plain/adapter"):
        open_adapters([folders["plain"], folders["pairs"]])
    model, _ = open_adapters([folders["plain"], folders["pairs"]], check_weights=False)
    layer = "vision_encoder.neck.conv1"
    name = next(name for name in tensors if name.endswith("neck.conv1.svd_coefficient_p"))
    torch.testing.assert_close(coefficients(model, "pairs")[layer][1], tensors[name], rtol=0, atol=1e-6)


def test_adapters_that_were_trained_in_different_frames_are_refused(tmp_path):
    for name, frame in {"padded": None, "stretched": "squashed"}.items():
        model = build("samparser-coefficients", make_tiny_sam())
        save_trained(model, tmp_path / name)
        path = tmp_path / name / "method.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "frame": frame}))
    with pytest.raises(ValueError, match=r"padded was trained with frame None and .*stretched with 'squashed'"):
        open_adapters([tmp_path / "padded", tmp_path / "stretched"])
