"""Overlays: which pixel has which colour."""

import numpy as np

from samparser.drawing import overlay
from samparser.drawing.overlays import border
from samparser.drawing.palette import INSTANCE_COLOURS, rgb


def square(low, high, size=20):
    mask = np.zeros((size, size), dtype=bool)
    mask[low:high, low:high] = True
    return mask


def test_a_mask_is_filled_and_outlined_in_its_colour_and_the_rest_stays():
    image = np.full((20, 20, 3), 100, np.uint8)
    picture = overlay(image, square(5, 15)[None], opacity=0.5)
    colour = rgb(INSTANCE_COLOURS[0]).astype(float)
    assert picture[0, 0].tolist() == [100, 100, 100]
    assert picture[5, 5].tolist() == colour.tolist()
    assert picture[10, 10].tolist() == (0.5 * 100 + 0.5 * colour).round().tolist()
    assert image.max() == 100  # the image itself is left alone


def test_the_smaller_mask_is_on_top_whatever_the_order():
    masks = np.stack([square(8, 12), square(2, 18)])
    picture = overlay(np.zeros((20, 20, 3), np.uint8), masks, opacity=1.0)
    assert picture[10, 10].tolist() == rgb(INSTANCE_COLOURS[0]).tolist()
    assert picture[4, 4].tolist() == rgb(INSTANCE_COLOURS[1]).tolist()


def test_an_outline_is_white_on_dark_and_black_on_bright_ground():
    for ground, line in ((0, 255), (255, 0)):
        image = np.full((20, 20, 3), ground, np.uint8)
        picture = overlay(image, np.zeros((0, 20, 20), dtype=bool), outlines=square(5, 15)[None])
        assert picture[5, 10].tolist() == [line] * 3
        assert picture[10, 10].tolist() == [ground] * 3


def test_the_border_is_so_wide_and_the_edge_of_the_image_is_no_outside():
    assert border(square(5, 15), 1).sum() == 10 * 10 - 8 * 8
    assert border(square(5, 15), 2).sum() == 10 * 10 - 6 * 6
    assert not border(np.ones((6, 6), dtype=bool)).any()
