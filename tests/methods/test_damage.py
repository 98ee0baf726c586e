"""Damaged and hostile folders: one error that names the folder, a base model that is as it was, nothing in silence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from samparser.methods import load_model, load_trained, save_trained
from tests.conftest import make_tiny_sam

from .conftest import masks, shared_tuned_tiny_sam
from .test_restoring import looks

FILES = {"lora": "trained", "adapter": "trained", "decoder": "trained", "lora-qkv": "adapter_model"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder for each format and method, saved once."""
    root = tmp_path_factory.mktemp("saved")
    for name in (*FILES, "samparser"):
        save_trained(shared_tuned_tiny_sam(name), root / name)
    return root


@pytest.fixture
def copied(saved, tmp_path):
    """A function: a copy of a saved folder, to be damaged."""

    def copy(name):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return shutil.copytree(saved / name, tmp_path / "out")

    return copy


def refuse(folder, match):
    """Loading ends in one ValueError that says what it is about, and the base model is as it was."""
    base = make_tiny_sam()
    before, values = looks(base), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_trained(base, folder)
    assert looks(base) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in base.state_dict().items())


def edit(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def rewrite(folder, name, change):
    path = folder / f"{FILES.get(name, 'adapter_model')}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# Trained weights


def pair(tensors):
    """Two tensors of the same shape that differ."""
    names = [
        (one, other)
        for one in sorted(tensors)
        for other in sorted(tensors)
        if one < other and tensors[one].shape == tensors[other].shape and not torch.equal(tensors[one], tensors[other])
    ]
    return names[0]


def exchange(tensors):
    one, other = pair(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def reverse(tensors):
    name = pair(tensors)[0]
    tensors[name] = tensors[name].flip(0).contiguous()


def enlarge(tensors):
    tensors[pair(tensors)[0]] *= 1e30


def flip_a_bit(tensors):
    tensors[pair(tensors)[0]].view(torch.int32).view(-1)[0] ^= 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change", [exchange, reverse, enlarge, flip_a_bit, *(lambda t, d=d: t.update({pair(t)[0]: t[pair(t)[0]].to(d)})
    for d in (torch.int32, torch.bool, torch.float64, torch.float16))],
    ids=["exchanged", "reversed", "times 1e30", "one bit", "int32", "bool", "float64", "float16"],
)  # fmt: skip
def test_weights_that_are_not_those_that_were_saved_are_refused_by_the_tensor(name, change, copied):
    folder = copied(name)
    rewrite(folder, name, change)
    refuse(folder, r"out/\w+\.safetensors is not as it was saved: [12] of \d+ tensors .* first \S+\.")


@pytest.mark.parametrize("change", [exchange, reverse, enlarge, flip_a_bit], ids=lambda change: change.__name__)
def test_coefficients_that_are_not_those_that_were_saved_are_refused(change, copied):
    folder = copied("samparser")
    rewrite(folder, "samparser", change)
    refuse(folder, r"out/adapter_model\.safetensors is not the file that was saved")


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "samparser"])
def test_weights_changed_on_purpose_are_loaded_where_the_caller_says_so_and_saved_anew(name, copied, tiny_inputs):
    folder = copied(name)
    before = masks(load_trained(make_tiny_sam(), folder), tiny_inputs)
    rewrite(folder, name, lambda tensors: [tensor.mul_(1.5) for tensor in tensors.values()])
    changed = load_trained(make_tiny_sam(), folder, check_weights=False)
    assert not torch.equal(masks(changed, tiny_inputs), before)
    save_trained(changed, folder)
    assert torch.equal(masks(load_trained(make_tiny_sam(), folder), tiny_inputs), masks(changed, tiny_inputs))


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "samparser"])
def test_a_flipped_bit_in_the_header_changes_no_mask_in_silence(name, copied, tiny_inputs):
    expected = masks(shared_tuned_tiny_sam(name), tiny_inputs)
    path = copied(name) / f"{FILES.get(name, 'adapter_model')}.safetensors"
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    base = make_tiny_sam()
    before = looks(base)
    for byte in range(0, length, max(1, length // 40)):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ (1 << byte % 8)]) + whole[byte + 1 :])
        said = ""
        try:
            loaded = load_trained(base, path.parent)
        except ValueError as error:
            said = str(error)
        if said:
            assert str(path.parent) in said, byte
            assert looks(base) == before, byte
        else:
            assert torch.equal(masks(loaded, tiny_inputs), expected), byte
            base = make_tiny_sam()
            before = looks(base)


@pytest.mark.parametrize("name", ["lora-qkv", "samparser"])
def test_an_adapter_that_lacks_one_tensor_of_modules_to_save_is_refused_by_the_tensor(name, copied):
    folder = copied(name)
    lost = []

    def drop(tensors):
        lost.append(next(key for key in sorted(tensors) if "mask_decoder" in key))
        del tensors[lost[0]]

    rewrite(folder, name, drop)
    refuse(folder, rf"lacks 1 of the \d+ weights of 'mask_decoder', .* \(first {lost[0]}\)")


@pytest.mark.parametrize("name", ["lora-qkv", "samparser", "lora"])
@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_weights_file_that_is_missing_or_a_folder_is_named(name, instead, copied):
    folder = copied(name)
    path = folder / f"{FILES.get(name, 'adapter_model')}.safetensors"
    path.unlink()
    if instead == "a folder":
        path.mkdir()
    refuse(folder, r"out.*(adapter_model|trained)\.safetensors")


# adapter_config.json and method.json


@pytest.mark.parametrize("name", ["lora-qkv", "samparser"])
@pytest.mark.parametrize(
    ("values", "match"),
    [
        (
            {"peft_type": "LORA_OF_TOMORROW"},
            "has peft_type 'LORA_OF_TOMORROW', which PEFT .* does not know",
        ),
        ({"peft_type": ["LORA"]}, r"has peft_type \['LORA'\], which PEFT"),
        ({"peft_type": None}, "has peft_type None, which PEFT"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "has peft_type PROMPT_TUNING, which is for language"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
        ({"target_modules": 3}, "out"),
        ({"target_modules": ["nothing.like.this"]}, "(?i)target"),
        ({"modules_to_save": [0]}, "out"),
        ({"modules_to_save": 5}, "out"),
        ({"exclude_modules": 7}, "out"),
        ({"rank_pattern": [3]}, "out"),
        ({"rank_pattern": {"(((": 3}}, r"rank_pattern='\(\(\(' is .* not a valid one"),
        ({"target_modules": "(a|a|v)*(.*.*.*.*.*.*.*.*)*x$"}, "target_modules='.*' could take too long to match"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_configuration_with_what_cannot_be_is_refused_with_its_folder(name, values, match, copied):
    folder = copied(name)
    edit(folder / "adapter_config.json", **values)
    refuse(folder, match)


def test_an_adapter_that_leaves_out_its_own_layers_is_refused(copied):
    for name, layer in (("lora-qkv", "qkv"), ("samparser", "vision_encoder.neck.conv1")):
        folder = copied(name)
        edit(folder / "adapter_config.json", exclude_modules=[layer])
        refuse(folder, r"out.*(\d tensors missing|no place for|lacks|[Tt]arget)")


def test_an_adapter_that_names_further_adapters_asks_nobody_for_them(copied, monkeypatch):
    folder = copied("lora-qkv")
    content = {"peft_type": "XLORA", "task_type": None, "hidden_size": 8, "adapters": {"0": "someone/else"}}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the hub"))
    refuse(folder, "has peft_type XLORA, which is for language models and fetches further adapters that the file names")


def test_an_adapter_does_not_choose_what_is_imported(copied):
    folder = copied("lora-qkv")
    edit(folder / "adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity")
    refuse(folder, r"asks to import 'antigravity' \(megatron_config\)")


@pytest.mark.parametrize(("name", "file"), [("samparser", "adapter_config.json"), ("lora", "method.json")])
@pytest.mark.parametrize("text", ["[" * 50_000, '{"a":' * 50_000, "\0", '{"peft_type": NaN', "3", '"LORA"', "null"])
def test_json_that_is_none_or_nested_too_deep_is_named(name, file, text, copied):
    folder = copied(name)
    (folder / file).write_text(text)
    refuse(folder, rf"out/{file} (is damaged|names no peft_type|lacks format)")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"format": "1"}, r"method\.json is damaged: format is '1'"),
        ({"format": None}, "format is None"),
        ({"method": ["lora"]}, r"method is \['lora'\]"),
        ({"options": [4]}, r"options is \[4\]"),
        ({"options": {"rnak": 4}}, r"'lora' has no option 'rnak'"),
        ({"options": {"rank": "four"}}, "out cannot be put on this SamModel: TypeError"),
        ({"options": {"rank": None}}, "out cannot be put on this SamModel: TypeError"),
        ({"base_model": {"a": 1}}, r"base_model is \{'a': 1\}"),
        ({"base": [1]}, r"base is \[1\]"),
        ({"base": {"weights": {}}}, "base holds no dtype and weights"),
        ({"trained": "x"}, "trained is 'x'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_method_file_with_what_cannot_be_is_refused_by_the_field(values, match, copied):
    folder = copied("lora")
    edit(folder / "method.json", **values)
    refuse(folder, match)


# The base that a file names


def test_nothing_is_fetched_because_a_file_says_so(copied, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the hub"))
    name = "someone/sam-of-a-stranger"
    edit(copied("lora") / "method.json", base_model=name)
    with pytest.raises(FileNotFoundError, match=rf"not on this machine.* give base='{name}' to fetch"):
        load_model(tmp_path / "out")
    edit(copied("samparser") / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(FileNotFoundError, match=rf"not on this machine.* give base='{name}' to fetch"):
        load_model(tmp_path / "out")
