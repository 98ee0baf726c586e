import json
import re

import pytest
import torch
from transformers import SamModel

from samparser.methods import build, load_model, load_trained, save_trained
from samparser.methods.publishing import public_name, published_copy

from .conftest import masks


@pytest.mark.parametrize("name", ["samparser", "lora-qkv", "lora"])
def test_what_is_uploaded_names_the_base_and_not_where_it_lies(name, tiny_sam_folder, tmp_path, tiny_inputs):
    model = build(name, SamModel.from_pretrained(tiny_sam_folder))
    save_trained(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with published_copy(tmp_path / "adapter") as (copy, said):
        assert {path.name for path in copy.iterdir()} == set(before)
        for path in copy.rglob("*"):
            assert str(tiny_sam_folder).encode() not in path.read_bytes(), path
        assert json.loads((copy / "method.json").read_text())["base_model"] == tiny_sam_folder.name
        loaded = load_trained(SamModel.from_pretrained(tiny_sam_folder), copy)
        assert torch.equal(masks(loaded, tiny_inputs), masks(model.eval(), tiny_inputs))
        with pytest.raises(FileNotFoundError, match=rf"give base='{tiny_sam_folder.name}' to fetch it"):
            load_model(copy)
    assert f"named {tiny_sam_folder.name!r} there and not {str(tiny_sam_folder)!r}, a path of this machine" in said
    assert not copy.exists()
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


def test_a_base_of_the_hub_keeps_its_name_and_nothing_is_said(tiny_sam_folder, tmp_path):
    model = build("lora", SamModel.from_pretrained(tiny_sam_folder))
    model.name_or_path = "facebook/sam-vit-base"
    save_trained(model, tmp_path / "adapter")
    with published_copy(tmp_path / "adapter") as (copy, said):
        assert said is None
        assert json.loads((copy / "method.json").read_text())["base_model"] == "facebook/sam-vit-base"


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("someone/sam", "someone/sam"),
        ("sam", "sam"),
        ("./sam", "sam"),
        ("~/models/sam/", "sam"),
        ("a/b/sam", "sam"),
        ("../sam", "sam"),
        (r"C:\Users\me\sam", "sam"),
        ("/x/hub/models--someone--sam-a/snapshots/0123", "someone/sam-a"),
        (r"C:\hub\models--someone--sam\snapshots\01", "someone/sam"),
    ],
)
def test_the_public_name_says_nothing_of_the_machine(given, public):
    assert public_name(given) == public


def publish(folder):
    with published_copy(folder):
        pass


def test_a_folder_with_a_damaged_file_is_not_published(tmp_path):
    (tmp_path / "method.json").write_text("{")
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / 'method.json'))} is damaged"):
        publish(tmp_path)
