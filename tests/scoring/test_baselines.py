"""Filled boxes and inscribed ellipses, compared with one pixel at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samparser.scoring.baselines import box_masks, ellipse_masks

SIZE = (9, 12)
sides = st.integers(0, 24).map(lambda twice: twice / 2)


@given(st.lists(st.tuples(sides, sides, sides, sides), max_size=3))
def test_pixels_are_those_whose_centre_lies_inside(boxes):
    boxes = [(min(a, b), min(c, d), max(a, b), max(c, d)) for a, b, c, d in boxes]
    array = np.array(boxes).reshape(-1, 4)
    filled, ellipses = box_masks(array, SIZE), ellipse_masks(array, SIZE)
    assert filled.shape == ellipses.shape == (len(boxes), *SIZE)
    assert filled.dtype == ellipses.dtype == np.bool_
    for (x0, y0, x1, y1), box, ellipse in zip(boxes, filled, ellipses, strict=True):
        for row in range(SIZE[0]):
            for column in range(SIZE[1]):
                x, y = column + 0.5, row + 0.5
                has_area = x0 < x1 and y0 < y1
                assert box[row, column] == (has_area and x0 <= x <= x1 and y0 <= y <= y1)
                # Twice the distances from the centre over width and height, without a division that rounds.
                a, b = (2 * x - x0 - x1) * (y1 - y0), (2 * y - y0 - y1) * (x1 - x0)
                assert ellipse[row, column] == (has_area and a**2 + b**2 <= ((x1 - x0) * (y1 - y0)) ** 2)


def test_a_box_beyond_the_image_fills_what_lies_in_it():
    (mask,) = box_masks(np.array([[-3.0, -2.0, 2.0, 40.0]]), SIZE)
    assert mask[:, :2].all()
    assert not mask[:, 2:].any()
