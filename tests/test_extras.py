"""A missing extra is named; a broken package is not called missing."""

import pytest

from samparser._extras import require
from samparser.prediction import write_coco


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    with pytest.raises(ImportError, match=r'Drawing needs no_such_package.*pip install "samparser\[medical\]"'):
        require("no_such_package.part", "Drawing", "medical")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r'needs pycocotools.*pip install "samparser\[train\]"'):
        write_coco(tmp_path / "masks.json", [])


def test_a_broken_installed_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import another_missing_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'another_missing_package'"):
        require("broken_package", "Testing")
