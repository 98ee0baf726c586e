"""Contact sheets: cells of one size in rows of four, captions cut to their width."""

import numpy as np
from PIL import Image

from samparser.data import Instance, Sample
from samparser.drawing.contact_sheet import draw_cell, save_sheet
from samparser.drawing.palette import INSTANCE_COLOURS, rgb
from tests.data.files import rectangle


def cell(name="a.png", size=(240, 480), ship="ship"):
    mask = rectangle(size[1] // 4, size[0] // 4, size[1] // 2, max(1, size[0] // 2), *size)
    sample = Sample(name, np.zeros((*size, 3), np.uint8), (Instance.from_mask(mask, 1, "0"),))
    return draw_cell(sample, "train", {1: ship})


def test_a_cell_shows_the_image_with_its_box_in_a_square_above_its_caption():
    picture = np.asarray(cell())
    assert picture.shape == (480 + 40, 480, 3)
    assert (picture[:120] == 255).all()  # a wide image stands in the middle of its square
    assert picture[120, 0].tolist() == [0, 0, 0]
    assert picture[120 + 60, 120].tolist() == rgb(INSTANCE_COLOURS[0]).tolist()
    assert (picture[480:] < 128).any()


def test_an_image_of_one_row_still_gives_a_cell():
    assert cell(size=(1, 2000)).size == (480, 520)


def test_five_cells_take_two_rows_and_a_long_title_does_not_widen_the_sheet(tmp_path):
    path = save_sheet([cell()] * 5, "x" * 5000, tmp_path / "sheets" / "sheet.png")
    assert Image.open(path).size == (4 * 492 + 12, 36 + 2 * 532)


def test_names_of_several_lines_stand_on_one(tmp_path):
    assert np.array_equal(cell("a\nb.png", ship="\nship"), cell("a\\nb.png", ship="\\nship"))
    mask = rectangle(10, 10, 30, 30, 100, 100)
    two = tuple(Instance.from_mask(mask, number, str(number)) for number in (1, 2))
    draw_cell(Sample("a.png", np.zeros((100, 100, 3), np.uint8), two), "train", {1: "a\nb", 2: "c"})
    assert save_sheet([cell()], "data\nset", tmp_path / "sheet.png").is_file()
