"""Figures: made without pyplot, saved whole or not at all."""

import sys

import numpy as np
import pytest
from PIL import Image

from samparser.drawing import side_by_side
from samparser.drawing.figures import new_figure, save_picture
from tests.drawing.examples import example


def test_figures_leave_pyplot_and_its_window_system_alone(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    side_by_side(*example(), {"tuned": example()[1]}, tmp_path / "x.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'Drawing figures needs matplotlib.*pip install "matplotlib>=3\.8"'):
        side_by_side(*example(), {"tuned": example()[1]}, tmp_path / "x.png")


def test_figures_and_images_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, image = new_figure(2, 1), Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    assert save_picture(figure, tmp_path / "figure.png") == tmp_path / "figure.png"
    assert Image.open(tmp_path / "figure.png").size == (300, 150)
    save_picture(image, tmp_path / "image.png")
    before = (tmp_path / "image.png").read_bytes()

    def fail(self, path, *_, **__):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_picture(image, tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "image.png"]
