import json
import os

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from samparser.methods import build, describe, load_trained, save_trained
from samparser.methods.registry import recipe_of
from tests.conftest import make_tiny_sam

from .conftest import ALL, TRAINING, masks, train_a_little, tuned_tiny_sam


@pytest.mark.parametrize("name", ALL)
def test_a_reloaded_model_gives_the_same_masks_bit_for_bit(name, tmp_path, tiny_inputs):
    model = tuned_tiny_sam(name)
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert describe(loaded) == describe(model)
    assert recipe_of(loaded) == recipe_of(model)


@pytest.mark.parametrize("name", TRAINING)
def test_a_model_loaded_to_train_further_trains_what_it_trained(name, tmp_path, tiny_inputs):
    model = tuned_tiny_sam(name)
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out", trainable=True)
    names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in loaded.named_parameters() if parameter.requires_grad} == names
    train_a_little(loaded, tiny_inputs)
    assert not torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))


def test_a_loaded_model_is_saved_again_with_the_same_content(tmp_path, tiny_inputs):
    save_trained(tuned_tiny_sam("lora"), tmp_path / "first")
    save_trained(load_trained(make_tiny_sam(), tmp_path / "first"), tmp_path / "second")
    for file in ("trained.safetensors", "method.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_options_are_saved_and_used_when_loading(tmp_path, tiny_inputs):
    save_trained(tuned_tiny_sam("lora", rank=3, decoder=False), tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert loaded.vision_encoder.layers[0].attn.qkv.query_a.shape == (3, 24)
    assert set(describe(loaded).trained) == {"transformer layers"}


def test_only_what_was_trained_is_in_the_file(tmp_path):
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    model = build("lora", make_tiny_sam())
    saved = load_file(tmp_path / "out" / "trained.safetensors")
    assert set(saved) == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"trained.safetensors", "method.json"}


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


def test_a_folder_of_peft_files_is_read_by_peft_itself(tmp_path, tiny_inputs):
    model = tuned_tiny_sam("lora-qkv")
    save_trained(model, tmp_path / "out")
    by_peft = PeftModel.from_pretrained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(by_peft, tiny_inputs), masks(model, tiny_inputs))


def test_an_adapter_that_peft_saved_is_loaded_without_a_method(tmp_path, tiny_inputs):
    torch.manual_seed(0)
    model = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["proj"], r=2))
    train_a_little(model, tiny_inputs)
    model.save_pretrained(tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert recipe_of(loaded) is None
    assert describe(model).method is None
    assert describe(model).trained == {"transformer layers": 2 * (2 * 24 + 2 * 24)}


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "decoder", "adapter"])
def test_another_base_is_refused_by_name_and_nothing_is_changed(name, tmp_path, other_tiny_sam):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    before = {key: tensor.clone() for key, tensor in other_tiny_sam.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"trained on another base: this SamModel differs in \d+ of \d+ weights .*first"
    ):
        load_trained(other_tiny_sam, tmp_path / "out")
    after = other_tiny_sam.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["samparser", "samparser-coefficients", "transformer", "bases"])
def test_coefficients_refuse_another_base_themselves(name, tmp_path, other_tiny_sam):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    with pytest.raises(ValueError, match=r"(?i)base"):
        load_trained(other_tiny_sam, tmp_path / "out")


def test_one_changed_frozen_weight_is_noticed_and_named(tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "out")
    base = make_tiny_sam()
    with torch.no_grad():
        base.vision_encoder.layers[1].mlp.lin2.bias[3] += 1e-3
    with pytest.raises(
        ValueError, match=r"differs in 1 of \d+ weights .*first vision_encoder\.layers\.1\.mlp\.lin2\.bias"
    ):
        load_trained(base, tmp_path / "out")


def test_the_weights_that_were_trained_over_need_not_agree(tmp_path, tiny_inputs):
    model = tuned_tiny_sam("decoder")
    save_trained(model, tmp_path / "out")
    base = make_tiny_sam()
    with torch.no_grad():
        for parameter in base.mask_decoder.parameters():
            parameter.zero_()
    assert torch.equal(masks(load_trained(base, tmp_path / "out"), tiny_inputs), masks(model, tiny_inputs))


def test_a_base_in_another_dtype_is_refused_with_the_way_out(tmp_path):
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    half = make_tiny_sam().to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"base in float32; this SamModel is in bfloat16 .* Load the base in float32"):
        load_trained(half, tmp_path / "out")
    load_trained(half, tmp_path / "out", check_base=False)


def test_the_comparison_with_the_base_can_be_left_out(tmp_path, other_tiny_sam, tiny_inputs):
    save_trained(tuned_tiny_sam("lora"), tmp_path / "out")
    loaded = load_trained(other_tiny_sam, tmp_path / "out", check_base=False)
    assert torch.isfinite(masks(loaded, tiny_inputs)).all()


@pytest.mark.parametrize(
    ("name", "wrap"),
    [("lora", torch.nn.DataParallel), ("samparser", torch.nn.DataParallel), ("samparser", torch.compile)],
    ids=["lora in parallel", "samparser in parallel", "samparser compiled"],
)
def test_wrappers_of_training_are_looked_through(name, wrap, tmp_path, tiny_inputs):
    model = tuned_tiny_sam(name)
    save_trained(wrap(model), tmp_path / "out")
    assert torch.equal(masks(load_trained(make_tiny_sam(), tmp_path / "out"), tiny_inputs), masks(model, tiny_inputs))


def test_a_plain_model_is_not_saved_as_trained(tmp_path, tiny_sam):
    with pytest.raises(ValueError, match="This SamModel comes from no method and carries no PEFT adapter"):
        save_trained(tiny_sam, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder_to_save_to(tmp_path, tiny_sam):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out is a file"):
        save_trained(build("decoder", tiny_sam), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(("first", "second"), [("lora", "lora-qkv"), ("lora-qkv", "lora")])
def test_two_formats_do_not_share_a_folder(first, second, tmp_path):
    save_trained(build(first, make_tiny_sam()), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"already holds (adapter_config\.json|trained\.safetensors)"):
        save_trained(build(second, make_tiny_sam()), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_saving_over_an_earlier_save_replaces_it_and_keeps_other_files(tmp_path, tiny_inputs):
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    model = tuned_tiny_sam("lora")
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["lora", "lora-qkv"])
def test_an_interrupted_save_leaves_the_earlier_one(name, tmp_path, monkeypatch, tiny_inputs):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("samparser.methods.saving._method_card", _raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_trained(tuned_tiny_sam(name), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]


def _raise_disk_full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["samparser", "lora-qkv"])
def test_a_peft_adapter_without_the_decoder_it_promises_is_refused(name, tmp_path):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    path = tmp_path / "out" / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "mask_decoder" not in key}, path)
    with pytest.raises(ValueError, match=r"lacks the weights of 'mask_decoder', which adapter_config\.json says"):
        load_trained(make_tiny_sam(), tmp_path / "out")


@pytest.mark.parametrize(("name", "file"), [("lora-qkv", "adapter_model.safetensors"), ("lora", "trained.safetensors")])
def test_a_file_that_lacks_a_tensor_is_refused_by_the_tensor(name, file, tmp_path):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / file)
    lost = next(key for key in sorted(tensors) if "qkv" in key)
    del tensors[lost]
    tensors["stray"] = torch.zeros(1)
    save_file(tensors, tmp_path / "out" / file)
    with pytest.raises(ValueError, match=rf"1 tensors missing \(first {lost}.* and 1 tensors too many"):
        load_trained(make_tiny_sam(), tmp_path / "out")


def test_a_tensor_of_another_shape_is_refused_by_both_shapes(tmp_path):
    save_trained(build("lora", make_tiny_sam(), rank=4), tmp_path / "out")
    card = json.loads((tmp_path / "out" / "method.json").read_text())
    card["options"]["rank"] = 3
    (tmp_path / "out" / "method.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"query_a has shape \(4, 24\) in .* and \(3, 24\) in this model"):
        load_trained(make_tiny_sam(), tmp_path / "out")


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


def test_loading_onto_a_tuned_model_is_refused(tmp_path):
    model = build("decoder", make_tiny_sam())
    save_trained(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"already carries method 'decoder'; loading .* needs a base model"):
        load_trained(model, tmp_path / "out")


def test_pickled_adapters_are_not_read(tmp_path):
    save_trained(build("lora-qkv", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").rename(tmp_path / "out" / "adapter_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which is not read"):
        load_trained(make_tiny_sam(), tmp_path / "out")


def test_every_format_of_saving_checks_the_base(tmp_path):
    for name in ("decoder", "lora", "lora-qkv", "samparser", "bases"):
        save_trained(build(name, make_tiny_sam()), tmp_path / name)
        card = json.loads((tmp_path / name / "method.json").read_text())
        config = tmp_path / name / "adapter_config.json"
        checked_by_tuner = config.exists() and json.loads(config.read_text()).get("base_record")
        assert bool(card.get("base")) != bool(checked_by_tuner), name


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize(("name", "file"), [("samparser", "adapter_model"), ("decoder", "trained")])
def test_a_file_that_was_cut_off_is_named(name, file, share, tmp_path):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    path = tmp_path / "out" / f"{file}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"{file}\.safetensors \([\d,]+ bytes\) is damaged or cut off"):
        load_trained(make_tiny_sam(), tmp_path / "out")


@pytest.mark.parametrize(("content", "said"), [('{"peft_type": ', "is damaged"), ("{}", "names no peft_type")])
def test_a_damaged_configuration_of_an_adapter_is_named(content, said, tmp_path):
    save_trained(build("samparser", make_tiny_sam()), tmp_path / "out")
    (tmp_path / "out" / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"adapter_config\.json {said}"):
        load_trained(make_tiny_sam(), tmp_path / "out")


def test_a_saved_adapter_of_coefficients_has_a_card_that_says_how_to_load_it(tmp_path):
    model = tuned_tiny_sam("samparser")
    save_trained(model, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    for part in ("# license: fill in", "import samparser", "- Trained parameters: ", "- samparser ", "- PEFT "):
        assert part in card.read_text(), part
    assert "More Information Needed" not in card.read_text()
    card.write_text(card.read_text().replace("# license: fill in", "license: cc0-1.0\n#") + "\nOur own scans.\n")
    save_trained(model, tmp_path / "out")
    again = card.read_text()
    assert "license: cc0-1.0" in again
    assert "Our own scans." in again
    assert again.count("import samparser") == 1
