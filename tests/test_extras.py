"""A missing extra is named with a command that works wherever samparser was installed from."""

import sys
from importlib import metadata

import pytest

from samparser._extras import require


@pytest.fixture
def lacking(monkeypatch):
    """A function: makes packages look as if they were not installed, by import name and by distribution."""

    def hide(modules, distributions, requires=None):
        real_distribution = metadata.distribution

        def find(name):
            if name in distributions:
                raise metadata.PackageNotFoundError(name)
            return real_distribution(name)

        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(metadata, "distribution", find)
        if requires is not None:
            monkeypatch.setattr(metadata, "requires", requires)

    return hide


def message(module, extra):
    with pytest.raises(ImportError) as caught:
        require(module, "Drawing", extra)
    return str(caught.value)


def test_the_message_installs_the_package_by_its_own_name(lacking):
    lacking(["pycocotools", "pycocotools.mask"], ["pycocotools"])
    assert message("pycocotools.mask", "train") == (
        'Drawing needs pycocotools, which is not installed: pip install "pycocotools>=2.0.7" '
        "(samparser's extra 'train')."
    )


def test_one_command_brings_everything_that_the_extra_still_lacks(lacking):
    lacking(["PIL", "PIL.Image"], ["pillow", "scipy"])
    assert 'pip install "pillow>=10" "scipy>=1.11" (samparser' in message("PIL.Image", "train")


def test_an_extra_that_contains_another_names_its_own_packages_only(lacking):
    lacking(["nibabel"], ["nibabel"])
    assert "pip install \"nibabel>=5\" (samparser's extra 'medical')" in message("nibabel", "medical")


def test_a_checkout_that_nobody_installed_names_the_package(lacking):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    lacking(["PIL", "PIL.Image"], [], none)
    assert "pip install pillow (samparser's extra 'train')" in message("PIL.Image", "train")


def test_a_broken_installed_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import another_missing_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'another_missing_package'"):
        require("broken_package", "Testing")
