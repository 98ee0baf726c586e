"""Adapters by strangers: whatever stands in their files, one ValueError says what, soon, and the model is as it was."""

import json
import random
import time
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from samparser import SVDCoefficientConfig
from samparser._untrusted import MOST_WAYS, ways_to_match
from tests.conftest import make_tiny_sam
from tests.tuner.models import SKIP_NEWER_PEFT, batch, make, move, output, saved, unchanged

RECORD = "base_record"


@pytest.fixture
def folder(tmp_path):
    """An adapter with every kind of tensor: coefficients, a module in full, a bias."""
    model = get_peft_model(
        make("ConvNet"), SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["head"], bias="all")
    )
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_record(folder: Path, name: str, value: object, layer: str = "neck.0") -> None:
    record = json.loads((folder / "adapter_config.json").read_text())[RECORD]
    record[layer][name] = value
    edit_config(folder, base_record=record)


def edit_weights(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refuses(folder: Path, message: str) -> None:
    """Assert that the adapter is refused by both ways to load it, in a second or two, and the model is left alone."""
    model, started = make("ConvNet"), time.monotonic()
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, folder)
    unchanged(model, "ConvNet")
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, PeftConfig.from_pretrained(folder))
    unchanged(model, "ConvNet")
    assert time.monotonic() - started < 10


# adapter_config.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "FROM_THE_FUTURE"}, r"adapter_config.json: peft_type='FROM_THE_FUTURE' is no method that PEFT"),
        ({"peft_type": None}, "peft_type=None is no method"),
        ({"peft_type": ["LORA"]}, r"peft_type=\['LORA'\] is no method"),
        ({"format_version": "1"}, "adapter_config.json: format_version='1' is not possible; it has to be int"),
        ({"format_version": None}, "format_version=None is not possible"),
        ({"format_version": 10**9}, "format version 1000000000"),
        ({"target_modules": 7}, "adapter_config.json: target_modules=7 is not possible"),
        ({"target_modules": {"neck.0": 1}}, "target_modules={'neck.0': 1} is not possible"),
        ({"target_modules": [["neck.0"]]}, "target_modules=.* is not possible"),
        ({"modules_to_save": [0]}, r"modules_to_save=\[0\] is not possible"),
        ({"modules_to_save": "head"}, "modules_to_save='head' is not possible"),
        ({"modules_to_save": ["((("]}, "modules_to_save=.* not a valid one"),
        ({"rank_pattern": {"(((": 3}}, "rank_pattern=.* not a valid one"),
        ({"rank_pattern": ["a"]}, r"rank_pattern=\['a'\] is not possible"),
        ({"rank_pattern": None}, "rank_pattern=None is not possible"),
        ({"rank_pattern": {"a": "1"}}, "rank_pattern=.* is not possible"),
        ({"rank": "4"}, "rank='4' is not possible"),
        ({"scaling": True}, "scaling=True is not possible"),
        ({"scaling": 10**400}, "scaling=.* is not a finite number"),
        ({"trainable": ["coefficients"]}, r"trainable=\['coefficients'\] is not possible"),
        ({"bias": None}, "bias=None is not possible"),
        ({"layers_to_transform": {"a": 1}}, "layers_to_transform=.* is not possible"),
        ({"layers_pattern": [3], "layers_to_transform": [1]}, "layers_pattern=.* is not possible"),
        ({"auto_mapping": 3}, "auto_mapping=3 is not possible"),
        ({"task_type": 3}, "task type"),
        ({"inference_mode": "yes"}, "inference_mode='yes' is not possible"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path=3 is not possible"),
        ({RECORD: [1]}, r"base_record=\[1\] is not possible"),
        ({RECORD: {"neck.0": None}}, "base_record=.* is not possible"),
        ({RECORD: {"neck.0": {}}}, "neck.0: the adapter's base_record has no p0"),
        ({"weights_sha256": 3}, "weights_sha256=3 is not possible"),
        ({"weights_sha256": "0" * 64}, "is not the file that was saved with its adapter_config.json"),
        ({"exclude_modules": ["neck.0"]}, r"leaves out neck.0, against base_record"),
        ({"target_modules": ["neck.0"]}, r"leaves out neck.2, against base_record"),
        ({"target_modules": ["neck.0", "neck.2", "bottleneck"]}, r"adds bottleneck, against base_record"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_cannot_be_is_named(changes, message, folder):
    edit_config(folder, **changes)
    refuses(folder, message)


@pytest.mark.parametrize("value", [None, 0, "", [], {}, [6], [-6, 8], ["6", 8], [6.5, 8], [True, 8], [6, 8, 1, 0]])
def test_a_shape_in_the_record_that_cannot_be_is_named(value, folder):
    edit_record(folder, "shape", value)
    refuses(folder, r"neck.0: the adapter's base_record has shape=.*, which is not what a record holds there")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", 3),
        ("sha256", None),
        ("rounded", []),
        ("rounded", {"float16": 3}),
        ("probe", None),
        ("probe", ["a"]),
        ("probe", [float("nan")]),
        ("probe", [10**400]),
        ("p0", None),
        ("p0", 3),
        ("p0", "float32:"),
        ("p0", "float32:AAA="),
        ("origin", "float32:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    ],
)
def test_a_part_of_the_record_that_cannot_be_is_named(name, value, folder):
    edit_record(folder, name, value)
    refuses(folder, rf"neck.0.*({name}=|p0|origin)|coefficients p0 in the adapter's base_record cannot be read")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        '[["peft_type"]]',
        "[" * 100_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        "\x00",
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_a_file_that_is_no_configuration_is_named(text, folder):
    (folder / "adapter_config.json").write_text(text)
    refuses(folder, r"adapter_config.json cannot be read as the configuration of an adapter|has no peft_type")


def test_a_configuration_that_is_not_text_is_named(folder):
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x80{}")
    refuses(folder, "adapter_config.json cannot be read")


def test_deep_nesting_within_what_json_reads_is_refused(folder):
    deep: dict = {}
    for _ in range(400):
        deep = {"a": deep}
    edit_config(folder, auto_mapping=deep)
    refuses(folder, "nested more than 20 levels deep")


def test_a_configuration_without_a_type_is_named(folder):
    path = folder / "adapter_config.json"
    found = json.loads(path.read_text())
    del found["peft_type"]
    path.write_text(json.dumps(found))
    model = make("ConvNet")
    with pytest.raises(ValueError, match=r"adapter_config\.json has no peft_type"):
        PeftModel.from_pretrained(model, folder)
    unchanged(model, "ConvNet")


# Regular expressions

SLOW = [
    "(a|a|v)*(.*.*.*.*.*.*.*)*x$",
    "(.*)*x",
    "(a+)+$",
    "((a|b)*)*c",
    ".*.*.*.*x",
    "(a|a)" * 40 + "x",
    "a?" * 40 + "a" * 40,
    "(?=.*)x",
    r"(a)\1x",
    "a{1,30}{1,30}{1,30}b{1,9}",
    "(" * 400 + ")" * 400 + "x" * 200,
    "(?:a|a)+b",
    "(?P<n>a*)*",
    "[a-z]*[a-z]*[a-z]*[a-z]*!",
]


@pytest.mark.parametrize("pattern", SLOW, ids=lambda pattern: pattern[:20])
@pytest.mark.parametrize(
    "where",
    [
        lambda p: {"target_modules": p},
        lambda p: {"exclude_modules": p},
        lambda p: {"rank_pattern": {p: 2}},
        lambda p: {"modules_to_save": [p]},
        lambda p: {"layers_pattern": p, "layers_to_transform": [0]},
        lambda p: {"layers_pattern": ["a", p], "layers_to_transform": [0]},
    ],
    ids=["target", "exclude", "rank", "save", "layers", "layers list"],
)
def test_a_pattern_that_could_match_for_minutes_is_refused(pattern, where, folder):
    edit_config(folder, **where(pattern))
    refuses(folder, r"adapter_config.json: \S+ could take too long to match|not a valid one")


def test_many_patterns_count_together(folder):
    edit_config(folder, rank_pattern={f".*{i}.*.*x": 2 for i in range(3)})
    refuses(folder, "could take too long to match")


@pytest.mark.parametrize(
    "pattern",
    [
        "neck.0",
        r".*\.layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|v_proj|o_proj)",
        r"(vision_encoder\.)?neck\.conv[12]",
        r"^(?:a|b)\.[0-9]+$",
        "|".join(f"blocks_{i}" for i in range(40)),
    ],
)
def test_patterns_as_people_write_them_are_read(pattern, tmp_path):
    assert ways_to_match(pattern) <= MOST_WAYS
    SVDCoefficientConfig(target_modules=pattern).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).target_modules == pattern


def test_in_code_every_valid_pattern_may_stand():
    model = get_peft_model(make("ConvNet"), SVDCoefficientConfig(target_modules="(ne|ck)*(.)*[.]0"))
    assert model.peft_config["default"].target_modules == {"neck.0"}


# adapter_model.safetensors


def test_a_file_that_is_missing_or_a_folder_is_named(folder):
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    refuses(folder, r"adapter holds no adapter_model.safetensors, but its adapter_config.json is that of a trained")
    weights.mkdir()
    refuses(folder, r"adapter_model.safetensors \(not a file\) is not a readable safetensors file")


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "neck.2.svd_coefficient_p"])
def test_a_file_that_lacks_one_tensor_is_refused(name, folder):
    edit_weights(folder, lambda tensors: tensors.pop(f"base_model.model.{name}"))
    refuses(folder, rf"it lacks base_model.model.{name}\.")


def exchange(tensors):
    """The coefficients of two layers of one size, exchanged."""
    one, two = (f"base_model.model.neck.{i}.svd_coefficient_p" for i in (0, 2))
    tensors[one], tensors[two] = tensors[two], tensors[one]


def with_p(change):
    def changed(tensors):
        name = "base_model.model.neck.0.svd_coefficient_p"
        tensors[name] = change(tensors[name]).contiguous()

    return changed


VALUES = {
    "exchanged": exchange,
    "reversed": with_p(lambda p: p.flip(0)),
    "huge": with_p(lambda p: p * 1e30),
    "zero": with_p(torch.zeros_like),
    "one bit": with_p(lambda p: torch.nextafter(p, torch.tensor(9.0))),
    "half": with_p(lambda p: p.half()),
    "decoder": lambda tensors: tensors["base_model.model.head.weight"].mul_(1.001),
    "bias": lambda tensors: tensors["base_model.model.neck.2.base_layer.bias"].add_(1),
}


@pytest.mark.parametrize("how", VALUES)
def test_values_that_changed_since_are_refused(how, folder):
    edit_weights(folder, VALUES[how])
    refuses(folder, r"is not the file that was saved with its adapter_config.json.*weights_sha256.*fetch")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize("name", ["neck.0.svd_coefficient_p", "head.weight"])
@pytest.mark.parametrize("hashed", [True, False])
def test_tensors_of_another_kind_of_number_are_refused(dtype, name, hashed, folder):
    key = f"base_model.model.{name}"
    edit_weights(folder, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    if not hashed:
        edit_config(folder, weights_sha256=None)
    refuses(folder, f"{name} is {dtype}, but floating-point numbers")


def test_weights_that_were_edited_on_purpose_are_taken_once_the_configuration_is_saved_again(folder):
    edit_weights(folder, VALUES["reversed"])
    SVDCoefficientConfig.from_pretrained(folder).save_pretrained(folder)
    loaded = PeftModel.from_pretrained(make("ConvNet"), folder)
    edit_weights(folder, VALUES["zero"])
    refuses(folder, "is not the file that was saved")
    edit_config(folder, weights_sha256=None)
    zeros = PeftModel.from_pretrained(make("ConvNet"), folder)
    assert not torch.equal(output(loaded, batch("ConvNet")), output(zeros, batch("ConvNet")))


def test_every_flipped_bit_of_the_weights_is_refused_or_without_effect(folder):
    path = folder / "adapter_model.safetensors"
    whole, x = path.read_bytes(), batch("ConvNet")
    right, draw = output(PeftModel.from_pretrained(make("ConvNet"), folder), x), random.Random(0)
    length = 8 + int.from_bytes(whole[:8], "little")
    places = draw.sample(range(length), 80) + draw.sample(range(length, len(whole)), 40)
    refused = 0
    for at in places:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        model = make("ConvNet")
        try:
            loaded = PeftModel.from_pretrained(model, folder)
        except ValueError:
            unchanged(model, "ConvNet")
            refused += 1
        else:
            assert at < length  # No value was changed.
            assert torch.equal(output(loaded, x), right)
    assert refused > 100


@pytest.mark.parametrize("safe", [True, False])
def test_pickled_weights_are_checked_as_well(safe, tmp_path):
    model = get_peft_model(make("ConvNet"), SVDCoefficientConfig(target_modules=["neck"]))
    move(model)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    path = tmp_path / ("adapter_model.safetensors" if safe else "adapter_model.bin")
    assert torch.equal(
        output(PeftModel.from_pretrained(make("ConvNet"), tmp_path), batch("ConvNet")), output(model, batch("ConvNet"))
    )
    path.write_bytes(path.read_bytes()[:-30])
    refuses(tmp_path, r"is not a readable (safetensors|bin) file")


@SKIP_NEWER_PEFT
def test_transformers_writes_the_hash_too_and_refuses_by_it(tmp_path):
    sam = make_tiny_sam()
    sam.add_adapter(SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))
    for _ in range(2):  # A second time over the files of the first.
        move(sam)
        sam.save_pretrained(tmp_path)
        make_tiny_sam().load_adapter(tmp_path)
    key = "base_model.model.mask_decoder.iou_prediction_head.proj_in.bias"
    edit_weights(tmp_path, lambda tensors: tensors[key].add_(1))
    fresh = make_tiny_sam()
    with pytest.raises(ValueError, match="is not the file that was saved"):
        fresh.load_adapter(tmp_path)
    assert [type(module) for module in fresh.modules()] == [type(module) for module in make_tiny_sam().modules()]


def test_a_hash_is_of_what_is_saved_not_of_what_was_loaded(tmp_path):
    model = PeftModel.from_pretrained(make("ConvNet"), saved(tmp_path), is_trainable=True)
    move(model, seed=9)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make("ConvNet"), tmp_path / "again")
    assert torch.equal(output(again, batch("ConvNet")), output(model, batch("ConvNet")))
