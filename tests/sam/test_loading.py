"""Loading a checkpoint and its processor, with errors that say what to do."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor, ViTConfig, ViTModel

import samparser
from samparser.sam import default_processor, load_sam, neck_targets
from samparser.sam.loading import check_processor


def test_a_saved_checkpoint_loads_bit_for_bit_in_eval_mode(tiny_sam, tiny_sam_folder):
    model, processor = load_sam(tiny_sam_folder)
    assert type(model) is SamModel
    assert not model.training
    for name, tensor in tiny_sam.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert processor.image_processor.size["longest_edge"] == 64


def test_the_type_of_the_weights_can_be_chosen(tiny_sam_folder):
    model, _ = load_sam(str(tiny_sam_folder), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_usual_processor_is_that_of_the_published_checkpoints():
    with torch.device("meta"):
        model = SamModel(SamConfig())
    ours, published = default_processor(model).image_processor.to_dict(), SamImageProcessorPil().to_dict()
    assert {key: ours[key] for key in published} == published


def test_a_processor_for_another_size_is_refused(tiny_sam, tiny_processor):
    check_processor(tiny_sam, tiny_processor)
    with pytest.raises(
        ValueError, match=r"resizes to 1024 and pads to 1024 x 1024 pixels, but the model takes 64 x 64"
    ):
        check_processor(tiny_sam, SamProcessor(SamImageProcessorPil()))


def test_an_adapter_folder_is_named_as_such_with_its_base(tiny_sam, tmp_path):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=neck_targets(tiny_sam), r=2))
    model.peft_config["default"].base_model_name_or_path = "facebook/sam-vit-base"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a PEFT adapter, not a model.*load_sam\('facebook/sam-vit-base'\)"):
        load_sam(tmp_path)


def test_a_path_that_does_not_exist_is_told_from_a_name_on_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*/nowhere"):
        load_sam(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"There is no folder \./runs/a/b"):
        load_sam("./runs/a/b")


def test_without_the_packages_for_images_the_message_names_their_installation(tiny_sam_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'The processor of a SAM needs PIL, .*: pip install "?pillow'):
        load_sam(tiny_sam_folder)


def test_an_unreachable_hub_is_explained():
    with pytest.raises(
        OSError, match=r"(?s)nobody/no-such-sam is no local folder, and could not be fetched.*HF_HUB_OFFLINE"
    ):
        load_sam("nobody/no-such-sam")


def test_a_folder_without_config_and_a_bare_weight_file_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"it has no config\.json\. It holds notes\.txt"):
        load_sam(tmp_path)
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"sam_vit_b_01ec64\.pth is a file.*facebook/sam-vit-base"):
        load_sam(tmp_path / "sam_vit_b_01ec64.pth")


def test_another_architecture_is_named(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'vit', not of a SamModel"):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    with pytest.raises(ValueError, match=r"of type 'sam3'.*load it with transformers \(Sam3Model\)"):
        load_sam(tmp_path)


def test_a_damaged_and_an_incomplete_checkpoint_are_refused(tiny_sam, tiny_sam_folder, tmp_path):
    shutil.copytree(tiny_sam_folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"The checkpoint in .*cut cannot be read"):
        load_sam(tmp_path / "cut")
    state = {name: tensor for name, tensor in tiny_sam.state_dict().items() if "neck.conv" not in name}
    tiny_sam.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(ValueError, match=r"is incomplete: 2 tensors.*vision_encoder\.neck\.conv1\.weight"):
        load_sam(tmp_path / "part")
    shutil.copytree(tiny_sam_folder, tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"cannot be read.*config\.json and model\.safetensors"):
        load_sam(tmp_path / "none")


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 50_000, r" is not JSON that can be read: it is nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', r" is not JSON that can be read: Exceeds the limit \(4300 digits\)"),
        ("[1]", r" holds \[1\] and no fields"),
    ],
    ids=["deep", "long", "list"],
)
def test_json_that_cannot_be_used_is_named(tiny_sam_folder, tmp_path, file, text, reason):
    shutil.copytree(tiny_sam_folder, tmp_path / "sam")
    (tmp_path / "sam" / file).write_text(text)
    with pytest.raises(OSError, match=rf"cannot be read: {tmp_path}/sam/{file}{reason}.*\. A complete folder has"):
        load_sam(tmp_path / "sam")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("config.json", '{"model_type": "sam", "dtype": 1e999}', ""),
        ("processor_config.json", '{"image_processor": 1e999}', "its processor: "),
    ],
)
def test_values_that_transformers_fails_on_are_an_error_of_the_checkpoint(
    tiny_sam_folder, tmp_path, file, text, reason
):
    shutil.copytree(tiny_sam_folder, tmp_path / "sam")
    (tmp_path / "sam" / file).write_text(text)
    with pytest.raises(OSError, match=rf"The checkpoint in {tmp_path}/sam cannot be read: {reason}"):
        load_sam(tmp_path / "sam")


def stranger(folder, **config):
    """A folder whose configuration names code of its own, which leaves a file behind when it runs."""
    code = f"open({str(folder / 'ran')!r}, 'w')\nfrom transformers import SamConfig as C, SamProcessor as P"
    for name in ("config", "processor", "images"):
        (folder / f"{name}.py").write_text(code)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "stranger", "auto_map": {"AutoConfig": "config.C", "AutoModel": "config.C"}}, "custom code"),
        ({"auto_map": {"AutoConfig": "config.C"}}, "."),
        ({"model_type": "stranger"}, "stranger"),
    ],
)
def test_code_that_a_checkpoint_brings_is_neither_run_nor_asked_about(tmp_path, monkeypatch, config, message):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run a stranger's code"))
    with pytest.raises(OSError, match=rf"The checkpoint in .* cannot be read: .*{message}"):
        load_sam(stranger(tmp_path, **config))
    assert not (tmp_path / "ran").exists()


def test_code_that_a_processor_brings_is_not_run_either(tmp_path, monkeypatch, tiny_sam_folder):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run a stranger's code"))
    folder = tmp_path / "sam"
    shutil.copytree(tiny_sam_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    stranger(folder, **settings, auto_map={"AutoConfig": "config.C", "AutoModel": "config.C"})
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text())
            auto_map = {"AutoProcessor": "processor.P", "AutoImageProcessor": "images.P"}
            content["auto_map"] = auto_map
            if isinstance(content.get("image_processor"), dict):
                content["image_processor"]["auto_map"] = auto_map
            (folder / name).write_text(json.dumps(content))
    model, _ = load_sam(folder)
    assert type(model) is SamModel
    assert not (folder / "ran").exists()


def test_every_loader_of_the_library_that_could_run_such_code_says_no():
    loaders = []
    for path in Path(samparser.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if not (isinstance(called, ast.Attribute) and called.attr == "from_pretrained"):
                continue
            loader = ast.unparse(called.value)
            if loader.startswith(("Auto", "Sam")) or loader.endswith("_class"):
                loaders.append(path.name)
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
    assert {"loading.py", "base.py", "sam.py"} <= set(loaders)
