"""Masks kept inside their boxes come back as they were."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samparser.prediction.cropped_mask import CroppedMask, cropped, planes

masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks, *[st.integers(0, 3)] * 4)
def test_a_mask_and_a_part_that_holds_it_are_kept_alike_and_come_back(part, left, right, top, bottom):
    whole = np.pad(part, ((top, bottom), (left, right)))
    kept = CroppedMask.of(whole)
    assert CroppedMask.of(part, (left, top), whole.shape) == kept
    assert kept.area == whole.sum()
    assert np.array_equal(planes([kept], 1, whole.shape)[0], whole)
    x0, y0, x1, y1 = kept.box
    assert np.array_equal(whole[y0:y1, x0:x1], kept.mask)
    if kept.area:
        assert all(side.any() for side in (kept.mask[0], kept.mask[-1], kept.mask[:, 0], kept.mask[:, -1]))


def test_a_large_smooth_mask_takes_little():
    ys, xs = np.mgrid[:2000, :2000]
    kept = CroppedMask.of((ys - 1000) ** 2 + (xs - 1000) ** 2 < 900**2)
    assert len(kept.packed) < 0.01 * 2000 * 2000


def test_a_value_is_pasted_where_the_mask_is():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2] = True
    picture = np.zeros((4, 5, 3), dtype=np.uint8)
    (kept,) = cropped(mask[None])
    kept.paste(picture, [1, 2, 3])
    assert cropped([kept]) == [kept]
    assert (picture[mask] == [1, 2, 3]).all()
    assert picture.sum() == 6 * 2
