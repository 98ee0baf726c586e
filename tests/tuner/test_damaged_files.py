"""Adapter files that are damaged or do not belong are refused, and the model stays as it was."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn

from samparser import SVDCoefficientConfig
from tests.conftest import make_tiny_sam
from tests.tuner.models import ASKS_FOR_NEWER_PEFT, batch, layers, make, move, output, saved, unchanged, with_adapters


def damage(folder: Path, how: str) -> None:
    path = folder / "adapter_model.safetensors"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        return
    if how == "empty":
        path.write_bytes(b"")
        return
    tensors = load_file(path)
    name = "base_model.model.neck.0.svd_coefficient_p"
    if how == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif how == "nan":
        tensors[name][3] = float("nan")
    elif how == "missing":
        del tensors[name]
    elif how == "unknown layer":
        tensors["base_model.model.stem.svd_coefficient_p"] = torch.ones(8)
    elif how == "unknown tensor":
        tensors["base_model.model.stem.weight"] = torch.ones(8)
    elif how == "unknown kind":
        tensors["base_model.model.neck.0.svd_coefficient_q"] = torch.ones(6)
    save_file(tensors, path)


DAMAGES = {
    "truncated": r"\d+ bytes\) is not a readable safetensors file.*fetch it again",
    "empty": r"0 bytes\) is not a readable safetensors file",
    "shape": r"neck.0.svd_coefficient_p has shape \(5,\), but \(6,\) is needed",
    "nan": r"neck.0.svd_coefficient_p holds 1 of 6 values that are NaN or infinite",
    "missing": r"it lacks base_model.model.neck.0.svd_coefficient_p",
    "unknown layer": r"it holds base_model.model.stem.svd_coefficient_p, which the configuration does not know",
    "unknown tensor": r"it holds base_model.model.stem.weight, which the configuration does not know",
    "unknown kind": r"it holds base_model.model.neck.0.svd_coefficient_q",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_adapter_is_refused_and_the_model_left_as_it_was(how, tmp_path):
    folder = saved(tmp_path)
    damage(folder, how)
    model = make("ConvNet")
    with pytest.raises(ValueError, match=DAMAGES[how]):
        PeftModel.from_pretrained(model, folder)
    unchanged(model, "ConvNet")


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_second_adapter_leaves_the_first_alone(how, tmp_path):
    folder = saved(tmp_path)
    good = tmp_path / "good"
    shutil.copytree(folder, good)
    damage(folder, how)
    model, x = PeftModel.from_pretrained(make("ConvNet"), good), batch("ConvNet")
    before = output(model, x)
    names = {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match=DAMAGES[how]):
        model.load_adapter(folder, "second")
    assert list(model.peft_config) == ["default"]
    assert {name for name, _ in model.named_parameters()} == names
    assert torch.equal(output(model, x), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_record": {"neck.0": {}}}, r"base_record has no p0"),
        ({"p0": "float32:AAAA"}, r"cannot be read"),
        ({"p0": "int8:AAAA"}, r"unknown dtype 'int8'"),
        ({"p0": "float32:!!!"}, r"cannot be read"),
    ],
)
def test_a_record_that_was_edited_is_refused(change, message, tmp_path):
    folder = saved(tmp_path)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if "p0" in change:
        config["base_record"]["neck.0"]["p0"] = change["p0"]
    else:
        config |= change
        (folder / "adapter_model.safetensors").unlink()
    path.write_text(json.dumps(config))
    model = make("ConvNet")
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, folder)
    unchanged(model, "ConvNet")


def test_tensors_that_do_not_fit_are_refused_and_change_nothing():
    model, x = with_adapters("MLP", "default"), batch("MLP")
    before = output(model, x)
    good = get_peft_model_state_dict(model)
    name = "base_model.model.lin0.svd_coefficient_p"
    for bad, message in (
        ({**good, name: good[name][:3]}, r"has shape \(3,\), but \(10,\) is needed"),
        ({**good, name: good[name] * float("nan")}, "holds 10 of 10 values"),
        ({**good, "base_model.model.norm.svd_coefficient_p": good[name]}, r"has no place for base_model.model.norm"),
    ):
        with pytest.raises(ValueError, match=message):
            set_peft_model_state_dict(model, bad)
        assert torch.equal(output(model, x), before)


def test_a_model_that_lacks_a_target_is_refused(tmp_path):
    folder = saved(tmp_path)
    with pytest.raises(ValueError, match="'head', but no module"):
        PeftModel.from_pretrained(nn.ModuleDict({"neck": make("ConvNet").neck}), folder)


def test_reading_the_configuration_needs_no_weights(tmp_path):
    folder = saved(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    config = PeftConfig.from_pretrained(folder)
    assert config.peft_type is PeftType.SVD_COEFFICIENT
    assert sorted(config.base_record) == ["head", "neck.0", "neck.2"]


def sam_adapter(folder: Path, **choices) -> Path:
    """The folder of an adapter of a tiny SAM's neck, written by transformers itself where it does that."""
    sam, config = make_tiny_sam(), SVDCoefficientConfig(target_modules=["neck"], **choices)
    if ASKS_FOR_NEWER_PEFT:
        sam = get_peft_model(sam, config)
    else:
        sam.add_adapter(config)
    move(sam)
    sam.save_pretrained(folder)
    return folder


def edit(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or, with None, remove tensors of an adapter's file, given by the end of their names."""
    path = folder / "adapter_model.safetensors"
    found = load_file(path)
    for ending, tensor in tensors.items():
        name = next((name for name in found if name.endswith(ending)), ending)
        if tensor is None:
            del found[name]
        else:
            found[name] = tensor
    save_file(found, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"\d+ bytes\) is not a readable safetensors file"),
        ("nan", "conv1.svd_coefficient_p holds 24 of 24 values"),
        ("shape", r"conv1.svd_coefficient_p has shape \(23,\), but \(24,\) is needed"),
        ("missing", "it lacks base_model.model.vision_encoder.neck.conv1.svd_coefficient_p"),
        ("unknown", "it holds base_model.model.mask_decoder.svd_coefficient_p, which the configuration does not know"),
    ],
)
def test_transformers_own_loading_refuses_damaged_files_before_it_touches_the_model(how, message, tmp_path):
    folder = sam_adapter(tmp_path)
    if how == "truncated":
        damage(folder, how)
    elif how == "unknown":
        edit(folder, **{"base_model.model.mask_decoder.svd_coefficient_p": torch.ones(3)})
    else:
        bad = {"nan": torch.full((24,), float("nan")), "shape": torch.ones(23), "missing": None}
        edit(folder, **{"conv1.svd_coefficient_p": bad[how]})
    sam, twin = make_tiny_sam(), make_tiny_sam()
    with pytest.raises(ValueError, match=message):
        sam.load_adapter(folder)
    assert [type(module) for module in sam.modules()] == [type(module) for module in twin.modules()]
    assert all(torch.equal(p, twin.get_parameter(name)) for name, p in sam.named_parameters())
    sam.load_adapter(sam_adapter(tmp_path / "good"))
    assert [layer.active_adapters for layer in layers(sam)] == [["default"]] * 2


@pytest.mark.parametrize("value", [float("nan"), "wider"])
@pytest.mark.parametrize("second", [False, True])
def test_modules_to_save_that_do_not_fit_are_refused_as_well(value, second, tmp_path):
    folder = sam_adapter(tmp_path / "bad", modules_to_save=["mask_decoder"])
    bad = torch.ones(33) if value == "wider" else torch.full((32,), value)
    edit(folder, **{"mask_decoder.iou_prediction_head.proj_in.bias": bad})
    message = r"proj_in.bias has shape \(33,\), but \(32,\) is" if value == "wider" else "proj_in.bias holds 32 of 32"
    sam = make_tiny_sam()
    if second:
        good = sam_adapter(tmp_path / "good", modules_to_save=["mask_decoder"])
        model = PeftModel.from_pretrained(sam, good)
        with pytest.raises(ValueError, match=message):
            model.load_adapter(folder, "second")
        assert list(model.peft_config) == ["default"]
        assert list(sam.mask_decoder.modules_to_save) == ["default"]
    else:
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(sam, folder)
        assert isinstance(sam.mask_decoder, type(make_tiny_sam().mask_decoder))


def test_trained_biases_are_compared_with_the_model_before_and_after_it_is_adapted(tmp_path):
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], bias="all"))
    model.save_pretrained(tmp_path)
    good, plain = PeftModel.from_pretrained(make("MLP"), tmp_path), make("MLP")
    assert "second" not in good.peft_config
    edit(tmp_path, **{"lin0.base_layer.bias": torch.ones(13)})
    with pytest.raises(ValueError, match=r"lin0.base_layer.bias has shape \(13,\), but \(12,\) is needed"):
        PeftModel.from_pretrained(plain, tmp_path)
    unchanged(plain, "MLP")
    adapted = get_peft_model(plain, SVDCoefficientConfig(target_modules=["lin0"]))
    with pytest.raises(ValueError, match=r"lin0.base_layer.bias has shape \(13,\), but \(12,\) is needed"):
        adapted.load_adapter(tmp_path, "second")


def test_a_configuration_read_by_peft_remembers_its_folder_for_the_check(tmp_path):
    folder = saved(tmp_path)
    damage(folder, "nan")
    for read in (PeftConfig, SVDCoefficientConfig):
        model = make("ConvNet")
        with pytest.raises(ValueError, match="1 of 6 values"):
            PeftModel.from_pretrained(model, folder, config=read.from_pretrained(folder))
        unchanged(model, "ConvNet")
    model = make("ConvNet")
    with pytest.raises(ValueError, match="1 of 6 values"):
        PeftModel.from_pretrained(model, folder.parent, subfolder=folder.name)
    unchanged(model, "ConvNet")


def test_configurations_of_other_methods_are_read_as_ever(tmp_path):
    LoraConfig(r=3, target_modules=["lin0"]).save_pretrained(tmp_path)
    for read in (PeftConfig, LoraConfig):
        config = read.from_pretrained(tmp_path)
        assert type(config) is LoraConfig
        assert config.r == 3
        assert not hasattr(config, "_source")


def test_a_damaged_adapter_on_the_hub_is_refused_before_it_is_injected(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    damage(folder, "nan")
    asked = []

    @functools.wraps(hf_hub_download)  # PEFT reads in its signature what can be passed on.
    def download(repo_id, filename, **kwargs):
        asked.append((repo_id, filename, kwargs.get("revision")))
        if not (folder / filename).is_file():
            raise EntryNotFoundError(f"{filename} is not in {repo_id}")
        return str(folder / filename)

    monkeypatch.setattr("peft.config.hf_hub_download", download)
    monkeypatch.setattr("samparser.tuner.adapter_file.hf_hub_download", download)
    model = make("ConvNet")
    with pytest.raises(ValueError, match="1 of 6 values"):
        PeftModel.from_pretrained(model, "somebody/adapter", revision="v1")
    unchanged(model, "ConvNet")
    assert asked[-1] == ("somebody/adapter", "adapter_model.safetensors", "v1")
    (folder / "adapter_model.safetensors").unlink()
    config = SVDCoefficientConfig.from_pretrained("somebody/adapter")
    with pytest.raises(ValueError, match=r"somebody/adapter holds no adapter_model.safetensors"):
        get_peft_model(model, config)
    unchanged(model, "ConvNet")
    config.base_record = None  # As the message says: the choices of a trained adapter, for a new one.
    assert get_peft_model(model, config).active_adapters == ["default"]
    monkeypatch.setattr("samparser.tuner.adapter_file.hf_hub_download", offline)
    config = SVDCoefficientConfig.from_pretrained("somebody/adapter")
    with pytest.raises(LocalEntryNotFoundError, match="no connection"):
        get_peft_model(make("ConvNet"), config)


def offline(*args, **kwargs):
    raise LocalEntryNotFoundError("no connection")
