import json

import pytest

from samparser.methods import build, load_trained, save_trained
from tests.conftest import make_tiny_sam


def test_method_json_says_what_is_in_the_folder(tmp_path, tiny_sam_folder):
    from transformers import SamModel

    save_trained(build("lora", SamModel.from_pretrained(tiny_sam_folder)), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "method.json").read_text())
    assert card["method"] == "lora"
    assert card["options"] == {"rank": 4, "alpha": None, "decoder": True}
    assert card["base_model"] == str(tiny_sam_folder)
    assert card["base"]["dtype"] == "float32"
    assert "vision_encoder.neck.conv1.weight" in card["base"]["weights"]
    assert not any(name.startswith("mask_decoder.") for name in card["base"]["weights"])


def test_a_method_that_is_not_registered_is_named(tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "out")
    _edit(tmp_path / "out", method="mine")
    with pytest.raises(ValueError, match=r"method 'mine', which is not registered\. Import the module that defines it"):
        load_trained(make_tiny_sam(), tmp_path / "out")


def test_a_newer_format_asks_for_a_newer_samparser(tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "out")
    _edit(tmp_path / "out", format=99)
    with pytest.raises(ValueError, match=r"has format 99, .* reads up to format 1\. Install a newer samparser"):
        load_trained(make_tiny_sam(), tmp_path / "out")


def _edit(folder, **values):
    card = json.loads((folder / "method.json").read_text())
    (folder / "method.json").write_text(json.dumps({**card, **values}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged"), ("[]", "lacks format, method, options"), ('{"format": 1}', "lacks method")],
)
def test_a_damaged_method_json_is_refused(text, message, tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "method.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_trained(make_tiny_sam(), tmp_path / "out")


def test_pickled_adapters_are_not_read(tmp_path):
    save_trained(build("lora-qkv", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").rename(tmp_path / "out" / "adapter_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which is not read"):
        load_trained(make_tiny_sam(), tmp_path / "out")


@pytest.mark.parametrize(("content", "said"), [('{"peft_type": ', "is damaged"), ("{}", "names no peft_type")])
def test_a_damaged_configuration_of_an_adapter_is_named(content, said, tmp_path):
    save_trained(build("samparser", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"adapter_config\.json {said}"):
        load_trained(make_tiny_sam(), tmp_path / "out")
