import json
import shutil
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, SamModel, SamProcessor

from samparser.cli import main
from samparser.methods import build, describe, load_model, load_trained, loading, merged, save_trained
from samparser.methods.registry import applied_method
from tests.conftest import make_tiny_sam

from .conftest import TRAINING, masks, train_a_little, tuned_tiny_sam


@pytest.fixture
def trained(tiny_sam_folder, tiny_inputs):
    """A function: the tiny checkpoint tuned by a method, knowing where it was loaded from."""

    def make(name):
        torch.manual_seed(0)
        model = build(name, SamModel.from_pretrained(tiny_sam_folder))
        train_a_little(model, tiny_inputs)
        return model

    return make


@pytest.mark.parametrize("name", ["samparser", "samparser-coefficients", "lora", "lora-qkv", "adapter", "decoder"])
def test_a_trained_part_finds_its_base_by_itself(name, trained, tmp_path, tiny_inputs):
    model = trained(name)
    save_trained(model, tmp_path / "out")
    loaded, processor = load_model(tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert isinstance(processor, SamProcessor)
    assert not loaded.training


def test_a_base_model_is_opened_as_it_is(tiny_sam_folder, tiny_inputs):
    model, processor = load_model(tiny_sam_folder)
    assert torch.equal(masks(model, tiny_inputs), masks(make_tiny_sam(), tiny_inputs))
    assert isinstance(processor, SamProcessor)


def test_a_merged_model_is_opened_as_a_model(trained, tmp_path, tiny_inputs, tiny_processor):
    plain = merged(trained("samparser"))
    plain.save_pretrained(tmp_path / "merged")
    tiny_processor.save_pretrained(tmp_path / "merged")
    model, _ = load_model(tmp_path / "merged")
    assert type(model) is SamModel
    assert torch.equal(masks(model, tiny_inputs), masks(plain, tiny_inputs))


@pytest.mark.parametrize("name", ["samparser", "lora"])
def test_the_base_can_be_given(name, tiny_sam_folder, tmp_path, tiny_inputs):
    model = build(name, make_tiny_sam())  # was loaded from nowhere
    save_trained(model, tmp_path / "out")
    with pytest.raises(ValueError, match="does not say which base model it was trained on"):
        load_model(tmp_path / "out")
    loaded, _ = load_model(tmp_path / "out", base=tiny_sam_folder)
    assert torch.equal(masks(loaded, tiny_inputs), masks(model.eval(), tiny_inputs))


@pytest.mark.parametrize("name", ["samparser", "lora"])
def test_a_base_that_has_moved_is_named_with_the_way_out(name, tmp_path, tiny_sam_folder):
    model = build(name, SamModel.from_pretrained(tiny_sam_folder))
    (model.get_base_model() if hasattr(model, "get_base_model") else model).name_or_path = str(tmp_path / "gone")
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    save_trained(model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"trained on '.*gone', which cannot be loaded: .* give it as base"):
        load_model(tmp_path / "out")


def test_a_base_for_a_whole_model_is_refused(tiny_sam_folder):
    with pytest.raises(ValueError, match="is a whole model, so base='x' has no use"):
        load_model(tiny_sam_folder, base="x")


def test_a_folder_of_something_else_is_refused_by_what_it_holds(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no trained part: .* It holds holiday\.jpg\."):
        load_model(tmp_path)


def test_the_folder_above_an_adapter_points_to_the_adapter(tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*/adapter\?"):
        load_model(tmp_path)


def test_a_missing_folder_is_no_hub_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_model(tmp_path / "nothing" / "here")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function: puts a folder into a hub cache of its own under a name, as a download would have left it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def publish(folder, name):
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
        shutil.copytree(folder, repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")

    return publish


@pytest.mark.parametrize("name", ["samparser", "lora"])
def test_a_base_in_the_hub_s_cache_is_taken_from_there_and_keeps_its_name(
    name, trained, hub, tmp_path, tiny_sam_folder, tiny_inputs
):
    model = trained(name)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain.name_or_path = "someone/sam-base"
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = "someone/sam-base"
    save_trained(model, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"give base='someone/sam-base' to fetch it from the Hugging Face hub"):
        load_model(tmp_path / "out")
    hub(tiny_sam_folder, "someone/sam-base")
    loaded, _ = load_model(tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    save_trained(loaded, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "method.json").read_text())["base_model"] == "someone/sam-base"


@pytest.mark.parametrize("name", ["samparser", "lora", "decoder"])
def test_a_trained_part_is_opened_by_its_name_on_the_hub(name, trained, hub, tmp_path, tiny_inputs):
    model = trained(name)
    save_trained(model, tmp_path / "out")
    hub(tmp_path / "out", "someone/sam-cells")
    loaded, _ = load_model("someone/sam-cells")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))


def test_the_commands_take_names_on_the_hub(trained, hub, tmp_path, toy_coco, tiny_sam_folder):
    save_trained(trained("samparser"), tmp_path / "out")
    hub(tmp_path / "out", "someone/sam-cells")
    picture, plain = str(toy_coco / "val/val-000.png"), str(tmp_path / "merged")
    masks_folder = tmp_path / "masks"
    assert main(["merge", "someone/sam-cells", plain]) == 0
    assert type(SamModel.from_pretrained(plain)) is SamModel
    assert main(["evaluate", "someone/sam-cells", "--data", str(toy_coco), "--limit_images", "1"]) == 0
    assert main(["predict", "someone/sam-cells", picture, "--output", str(masks_folder), "--grid", "2"]) == 0
    assert (masks_folder / "masks.json").is_file()


def test_a_local_folder_goes_before_a_name_on_the_hub(trained, tmp_path, monkeypatch, tiny_inputs):
    model = trained("decoder")
    save_trained(model, tmp_path / "someone/sam-cells")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    loaded, _ = load_model("someone/sam-cells")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))


def test_only_a_trained_part_is_fetched_and_no_pickle(trained, tmp_path, monkeypatch):
    save_trained(trained("samparser"), tmp_path / "out")
    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(tmp_path / "out")

    monkeypatch.setattr(loading, "snapshot_download", download)
    load_model("someone/sam-cells")
    fetched = set(asked["someone/sam-cells"])
    assert fetched >= {path.name for path in (tmp_path / "out").iterdir()}
    assert all(name.endswith((".json", ".safetensors", ".md")) for name in fetched)


def test_a_whole_model_on_the_hub_is_loaded_as_one(tmp_path, monkeypatch, tiny_sam_folder):
    (tmp_path / "empty").mkdir()  # what is left of a model's repository after the patterns of a trained part
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: str(tmp_path / "empty"))
    monkeypatch.setattr(loading, "load_sam", lambda name, frame: ("model", name))
    assert load_model("someone/sam-base") == ("model", "someone/sam-base")
    with pytest.raises(ValueError, match="someone/sam-base is a whole model, so base='x' has no use"):
        load_model("someone/sam-base", base="x")


def test_a_name_that_the_hub_does_not_know_is_explained(monkeypatch, capsys, toy_coco):
    def missing(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError, "404")

    monkeypatch.setattr(loading, "snapshot_download", missing)
    with pytest.raises(OSError, match=r"someone/sam-cels is no local folder, and could not be fetched .* spelling"):
        load_model("someone/sam-cels")
    assert main(["evaluate", "someone/sam-cels", "--data", str(toy_coco)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "merge", "compare"])
def test_a_gated_checkpoint_ends_every_verb_in_one_message(verb, monkeypatch, capsys, toy_coco, tmp_path):
    def refused(*_, **__):
        error = GatedRepoError.__new__(GatedRepoError, "403")
        error.response = SimpleNamespace(status_code=403)
        raise error

    monkeypatch.setattr(loading, "snapshot_download", refused)
    monkeypatch.setattr(AutoConfig, "from_pretrained", refused)
    source = {"name": "toy", "folder": "toy-coco", "source": "tests", "files": ["train/*.png"]}
    content = {"name": "x", "title": "X", "model": "facebook/sam3", "methods": [{"method": "decoder"}]}
    for name, data in (("x", [source]), ("counted", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "data": data}))
    output = ["--output", str(tmp_path / "out")]
    commands = {
        "train": [["--model", "facebook/sam3", "--data", str(toy_coco), "--output_dir", str(tmp_path / "out")]],
        "evaluate": [["facebook/sam3", "--data", str(toy_coco)]],
        "predict": [["facebook/sam3", str(toy_coco / "val"), "--grid", "2", *output]],
        "merge": [["facebook/sam3", *output[1:]]],
        "compare": [
            [str(tmp_path / "x.json"), "--data_root", str(toy_coco.parent), *output],
            [str(tmp_path / "counted.json"), *output],
        ],
    }
    for words in commands[verb]:
        assert main([verb, *words]) == 2
        said = capsys.readouterr().err
        assert "facebook/sam3 may not be fetched with this login" in said
        assert said.count("hf auth login") == 1
        assert "Traceback" not in said


def test_offline_the_way_out_is_named(hub):
    with pytest.raises(OSError, match=r"no local folder, and could not be fetched .* HF_HUB_OFFLINE=1"):
        load_model("someone/not-downloaded")


def test_an_adapter_that_peft_saved_is_loaded_without_a_method(tmp_path, tiny_inputs):
    torch.manual_seed(0)
    model = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["proj"], r=2))
    train_a_little(model, tiny_inputs)
    model.save_pretrained(tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert applied_method(loaded) is None
    assert describe(model).method is None
    assert describe(model).trained == {"transformer layers": 2 * (2 * 24 + 2 * 24)}


@pytest.mark.parametrize("name", TRAINING)
def test_a_model_loaded_to_train_further_trains_what_it_trained(name, tmp_path, tiny_inputs):
    model = tuned_tiny_sam(name)
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out", trainable=True)
    names = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in loaded.named_parameters() if parameter.requires_grad} == names
    train_a_little(loaded, tiny_inputs)
    assert not torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))


def test_options_are_saved_and_used_when_loading(tmp_path, tiny_inputs):
    save_trained(tuned_tiny_sam("lora", rank=3, decoder=False), tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert loaded.vision_encoder.layers[0].attn.qkv.query_a.shape == (3, 24)
    assert set(describe(loaded).trained) == {"transformer layers"}


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


def test_loading_onto_a_tuned_model_is_refused(tmp_path):
    model = build("decoder", make_tiny_sam())
    save_trained(model, tmp_path / "out")
    with pytest.raises(ValueError, match=r"already carries method 'decoder'; loading .* needs a base model"):
        load_trained(model, tmp_path / "out")


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize(("name", "file"), [("samparser", "adapter_model"), ("decoder", "trained")])
def test_a_file_that_was_cut_off_is_named(name, file, share, tmp_path):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    path = tmp_path / "out" / f"{file}.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"{file}\.safetensors \([\d,]+ bytes\) is damaged or cut off"):
        load_trained(make_tiny_sam(), tmp_path / "out")
