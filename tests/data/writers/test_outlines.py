import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from samparser.data import Instance
from samparser.data.writers.outlines import is_hole, joined, outlines, rings

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
RING = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=bool)


def drawn(polygon, height, width):
    """One polygon as pycocotools draws it."""
    return coco_mask.decode(coco_mask.frPyObjects([polygon.ravel().astype(float).tolist()], height, width))[:, :, 0] > 0


def test_a_box_has_four_corners_and_a_hole_goes_the_other_way():
    assert rings(np.ones((2, 3), bool))[0].tolist() == [[0, 0], [3, 0], [3, 2], [0, 2]]
    outer, inner = rings(RING)
    assert (is_hole(outer), is_hole(inner)) == (False, True)
    assert sorted(inner.tolist()) == [[1, 1], [1, 2], [3, 1], [3, 2]]


def test_pixels_that_touch_at_a_corner_are_outlines_of_their_own():
    assert sorted(ring.tolist()[0] for ring in rings(np.eye(3, dtype=bool))) == [[0, 0], [1, 1], [2, 2]]


@given(mask=MASKS)
def test_the_outlines_cover_each_pixel_of_the_mask_and_no_other(mask):
    area = 0.0
    crossings = np.zeros(mask.shape, int)
    for ring in rings(mask):
        x, y = ring.T
        area += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
        # A pixel is inside where a ray to the left from its middle meets an odd number of upright sides.
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0:] += 1
    assert area == mask.sum()
    assert np.array_equal(crossings % 2 == 1, mask)


@given(mask=MASKS.filter(lambda mask: mask.any()), at=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_pycocotools_draws_the_same_mask_from_one_polygon_or_several(mask, at):
    instance = Instance.from_mask(mask, 1, "a", offset=at)
    height, width = mask.shape[0] + 7, mask.shape[1] + 7
    expected = np.zeros((height, width), bool)
    x0, y0, x1, y1 = instance.box
    expected[y0:y1, x0:x1] = instance.mask
    (one,) = outlines(instance, one=True)
    assert np.array_equal(drawn(one, height, width), expected)
    parts = [drawn(ring, height, width) for ring in outlines(instance)]
    assert np.array_equal(np.logical_or.reduce(parts), expected)
    assert sum(part.sum() for part in parts) == expected.sum()


def test_a_bridge_has_no_width_for_another_drawer_of_polygons():
    parts = [np.array([[2, 2], [9, 2], [9, 9], [2, 9]]), np.array([[15, 2], [20, 2], [20, 9], [15, 9]])]
    line = joined(parts)
    picture = Image.new("1", (24, 12))
    # Pillow draws the line of the outline too: between its corners there is nothing but that.
    ImageDraw.Draw(picture).polygon([tuple(point) for point in line.tolist()], fill=1, outline=1)
    between = np.asarray(picture)[:, 10:15]
    assert between.sum() == 5
    assert between.any(axis=1).sum() == 1


def test_a_large_mask_with_many_holes_is_one_outline():
    y, x = np.mgrid[:700, :700]
    mask = ((x - 350) ** 2 + (y - 350) ** 2 < 340**2) & ((x % 14 < 9) | (y % 14 < 9))
    (ring,) = outlines(Instance.from_mask(mask, 1, "a"))
    assert np.array_equal(drawn(ring, 700, 700), mask)
