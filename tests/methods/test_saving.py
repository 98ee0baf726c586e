import os
import stat

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from samparser.methods import build, describe, load_trained, save_trained
from samparser.methods.registry import applied_method
from tests.conftest import make_tiny_sam

from .conftest import ALL, masks, tuned_tiny_sam


@pytest.mark.parametrize("name", ALL)
def test_a_reloaded_model_gives_the_same_masks_bit_for_bit(name, tmp_path, tiny_inputs):
    model = tuned_tiny_sam(name)
    save_trained(model, tmp_path / "out")
    loaded = load_trained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(loaded, tiny_inputs), masks(model, tiny_inputs))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert describe(loaded) == describe(model)
    assert applied_method(loaded) == applied_method(model)


def test_a_loaded_model_is_saved_again_with_the_same_content(tmp_path, tiny_inputs):
    save_trained(tuned_tiny_sam("lora"), tmp_path / "first")
    save_trained(load_trained(make_tiny_sam(), tmp_path / "first"), tmp_path / "second")
    for file in ("trained.safetensors", "method.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_only_what_was_trained_is_in_the_file(tmp_path):
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    model = build("lora", make_tiny_sam())
    saved = load_file(tmp_path / "out" / "trained.safetensors")
    assert set(saved) == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"trained.safetensors", "method.json"}


def test_a_folder_of_peft_files_is_read_by_peft_itself(tmp_path, tiny_inputs):
    model = tuned_tiny_sam("lora-qkv")
    save_trained(model, tmp_path / "out")
    by_peft = PeftModel.from_pretrained(make_tiny_sam(), tmp_path / "out")
    assert torch.equal(masks(by_peft, tiny_inputs), masks(model, tiny_inputs))


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
    monkeypatch.setattr("samparser.methods.saving._method_file", _raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_trained(tuned_tiny_sam(name), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]


def _raise_disk_full(*args):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "samparser"])
def test_saved_files_can_be_read_by_whom_any_new_file_can(name, tmp_path):
    (tmp_path / "plain").touch()
    for _ in range(2):
        save_trained(build(name, make_tiny_sam()), tmp_path / "out")
        modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
        assert set(modes.values()) == {(tmp_path / "plain").stat().st_mode}
    weights = next((tmp_path / "out").glob("*.safetensors"))
    weights.chmod(0o640)
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    assert stat.S_IMODE(weights.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")],
    ids=["of the system", "of safetensors"],
)
@pytest.mark.parametrize("name", ["lora", "lora-qkv", "samparser"])
def test_a_full_disk_is_said_once_and_the_earlier_save_stays(name, error, tmp_path, monkeypatch):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*_, **__):
        raise error

    monkeypatch.setattr("samparser.methods.saving.save_file", full)
    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(OSError, match=r"no space left to write it; what was there before is as it was .*out'"):
        save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]


def test_links_planted_beside_the_folder_are_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to(victim)
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    assert list(victim.iterdir()) == []
    assert (tmp_path / "out" / "method.json").is_file()


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
