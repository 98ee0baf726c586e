"""What ``push_to_hub`` uploads, with the Hub replaced by a folder."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model

from samparser import SVDCoefficientConfig
from tests.tuner.models import batch, make, output, with_adapters

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]


class FakeHub:
    """A repository in a folder, with the calls that transformers makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            target = self.folder / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(operation.path_or_fileobj, target)

    def load_card(self, repo_id, **kwargs):
        if not (self.folder / "README.md").exists():
            raise EntryNotFoundError("README.md")
        return ModelCard((self.folder / "README.md").read_text())


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder that stands for the repository."""
    fake = FakeHub(tmp_path)
    where = "transformers.utils.hub"
    # Newer versions of transformers call the methods of an HfApi, older ones functions.
    monkeypatch.setattr(f"{where}.hf_api", lambda: fake, raising=False)
    monkeypatch.setattr(f"{where}.create_repo", fake.create_repo, raising=False)
    monkeypatch.setattr(f"{where}.create_commit", fake.create_commit, raising=False)
    monkeypatch.setattr(f"{where}.ModelCard.load", fake.load_card)
    return tmp_path


def test_a_pushed_folder_is_complete_and_loads(hub):
    model, x = with_adapters("ConvNet", "default"), batch("ConvNet")
    model.push_to_hub("somebody/adapter")
    assert sorted(path.name for path in hub.iterdir()) == FILES
    loaded = PeftModel.from_pretrained(make("ConvNet"), hub)
    assert (output(loaded, x) == output(model, x)).all()


def test_what_its_author_wrote_on_the_hub_survives_the_next_push(hub):
    model = with_adapters("ConvNet", "default")
    model.push_to_hub("somebody/adapter")
    card = hub / "README.md"
    text = card.read_text().replace("---\n", "---\nlicense: cc0-1.0\n", 1)
    card.write_text(text + "\nTrained on our own scans. First `import samparser`.\n")
    model.push_to_hub("somebody/adapter")
    again = card.read_text()
    assert "license: cc0-1.0" in again
    assert "Trained on our own scans." in again
    assert again.count("import samparser") == 1


def test_adapters_with_names_of_their_own_are_pushed_side_by_side(hub):
    with_adapters("MLP", "one", "two").push_to_hub("somebody/adapters")
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "one", "two"]
    for name in ("one", "two"):
        assert sorted(path.name for path in (hub / name).iterdir()) == FILES[1:]


def test_adapters_of_other_methods_are_pushed_as_ever(hub):
    get_peft_model(make("MLP"), LoraConfig(target_modules=["lin0"])).push_to_hub("somebody/lora")
    assert sorted(path.name for path in hub.iterdir()) == FILES
    assert "samparser" not in (hub / "README.md").read_text()


def test_a_configuration_alone_can_be_pushed(hub):
    SVDCoefficientConfig(target_modules=["lin0"]).push_to_hub("somebody/config")
    assert "adapter_config.json" in [path.name for path in hub.iterdir()]
