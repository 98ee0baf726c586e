"""Overlays: which pixel has which colour."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samparser.drawing import overlay, overlays
from samparser.drawing.overlays import border
from samparser.drawing.palette import INSTANCE_COLOURS, instance_colour, rgb
from samparser.prediction import CroppedMask


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


@settings(max_examples=60)
@given(arrays(bool, (3, 9, 11)), st.integers(1, 3), st.sampled_from([11, 25, 1000]))
def test_masks_in_boxes_and_in_strips_are_drawn_as_whole_masks_are(masks, line, strip):
    """The reference draws on the whole picture, in the order of the areas, with the border of the whole mask."""
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    expected = image.copy()
    for number in sorted(range(3), key=lambda number: -masks[number].sum()):
        colour = rgb(instance_colour(number))
        expected[masks[number]] = (0.55 * expected[masks[number]] + 0.45 * colour).round()
        expected[border(masks[number], line)] = colour
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlays, "_STRIP", strip)
        assert np.array_equal(overlay(image, masks, line=line), expected)
        kept = [CroppedMask.of(mask) for mask in masks]
        assert np.array_equal(overlay(image, kept, line=line), expected)


def test_a_mask_keeps_its_colour_and_the_rest_of_the_image_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    masks = np.zeros((2, 12, 14), dtype=bool)
    masks[0, 2:7, 2:7], masks[1, 8:11, 8:12] = True, True
    both, alone = overlay(image, masks), overlay(image, masks[:1])
    outside = ~masks.any(axis=0)
    assert np.array_equal(both[outside], image[outside])
    assert np.array_equal(both[masks[0]], alone[masks[0]])
    assert (both[border(masks[0])] == both[2, 2]).all()
    assert not np.array_equal(both[2, 2], both[8, 8])
    assert not np.array_equal(image, both)
    assert np.array_equal(overlay(image, masks[:0]), image)


def test_the_border_of_a_mask_is_its_pixels_beside_the_outside():
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:5, 2:6] = True
    expected = mask.copy()
    expected[2:4, 3:6] = False  # the right side runs along the image's edge, where there is no outside
    assert np.array_equal(border(mask), expected)
    assert np.array_equal(border(mask, 2), mask)
    solid = np.pad(np.ones((9, 9), dtype=bool), 1)
    assert (solid & ~border(solid, 3)).sum() == 9


@pytest.mark.parametrize("ground", [0, 255])
def test_an_outline_stands_out_from_dark_and_bright_ground(ground):
    image = np.full((8, 8, 3), ground, dtype=np.uint8)
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, 2:6, 2:6] = True
    assert (overlay(image, mask[:0], outlines=mask)[2, 2] == 255 - ground).all()
