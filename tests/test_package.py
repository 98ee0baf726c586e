"""What `pip install samparser` promises: one version, few dependencies, a quick import."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
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
import tarfile
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
    assert "needs PIL, which is not installed: pip install" in out[1]
    assert '"pillow>=10"' in out[1]


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


def test_the_source_distribution_holds_what_its_tests_docs_and_quickstart_need(tmp_path):
    made = (".*", "build", "dist", "site", "runs", "quickstart-output", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=shutil.ignore_patterns(*made))
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path / "tree", capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    with tarfile.open(next(tmp_path.glob("samparser-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = {
        path.relative_to(tmp_path / "tree").as_posix()
        for folder in ("samparser", "tests", "docs", "examples", "requirements")
        for path in (tmp_path / "tree" / folder).rglob("*")
        if path.is_file()
    } - names
    assert missing == set()
    assert names >= {"Makefile", "mkdocs.yml", "CHANGELOG.md", "LICENSE", "README.md", "samparser_command.py"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_first_code_of_the_readme_runs_without_a_warning(tmp_path):
    readme = (ROOT / "README.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[:2]
    code = f'{first}\nmodel.save_pretrained("adapter")\n{second}'
    code = code.replace("facebook/sam-vit-base", str(ROOT / "examples" / "assets" / "small-sam"))
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "trainable params: 192 || all params:" in done.stdout
    assert "Warning" not in done.stderr
