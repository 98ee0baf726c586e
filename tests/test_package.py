"""What `pip install samparser` promises: one version, few dependencies, a quick import."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import samparser

ROOT = Path(__file__).parents[1]
CORE = {"torch", "peft", "transformers", "safetensors", "numpy"}
# What the extras bring; the core must do without.
EXTRAS = (
    "PIL", "scipy", "pycocotools", "msgspec", "matplotlib", "rich", "tensorboard", "nibabel", "jaxtyping", "beartype",
)  # fmt: skip


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_version_comes_from_one_place():
    assert samparser.__version__ == version("samparser")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]


def test_the_core_needs_five_packages():
    names = {re.match(r"[\w-]+", line)[0] for line in requires("samparser") if "extra ==" not in line}
    assert names == CORE


def test_the_package_says_that_it_is_typed():
    assert resources.files("samparser").joinpath("py.typed").is_file()


def test_the_tuner_works_without_any_extra():
    code = f"""
import sys
from importlib.machinery import PathFinder
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] not in {EXTRAS!r}:
            return super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
import torch
from peft import get_peft_model
from transformers import SamConfig, SamModel
from samparser import SVDCoefficientConfig
with torch.device("meta"):
    sam = SamModel(SamConfig())
net = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), SVDCoefficientConfig(target_modules="all-linear"))
print(sum(p.numel() for p in net.parameters() if p.requires_grad))
import samparser.scoring.losses, samparser.scoring.table
try:
    import samparser.data
except ImportError as error:
    print(error)
"""
    out = in_fresh_python(code).splitlines()
    assert out[0] == "3"
    assert 'pip install "samparser[train]"' in out[1]


def test_importing_samparser_imports_no_room_but_the_tuner():
    out = in_fresh_python("import sys, samparser; print(*[m for m in sys.modules if m.startswith('samparser.')])")
    rooms = {name.split(".")[1] for name in out.split()}
    assert rooms == {"_files", "_hashing", "_version", "tuner"}


def test_public_names_resolve_and_others_are_refused_with_the_list():
    for name in samparser.__all__:
        assert getattr(samparser, name) is not None
    assert set(dir(samparser)) == set(samparser.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'bild'; it offers .*build"):
        _ = samparser.bild


def test_the_readme_and_the_licence_are_what_they_say():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "make quickstart" in readme
    assert "make test" in readme
    pins = (ROOT / "requirements" / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in pins
