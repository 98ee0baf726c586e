import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from samparser.data.readers.segmentations import BadMask, annotation_mask, mask_rle, polygon_mask, rle_mask
from tests.data.files import polygon, runs

masks = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
def test_a_compressed_run_length_encoding_gives_back_its_mask(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    drawn = rle_mask({"size": list(mask.shape), "counts": encoded["counts"].decode()}, *mask.shape)
    assert np.array_equal(drawn, mask)


@given(masks)
def test_an_uncompressed_run_length_encoding_gives_back_its_mask(mask):
    drawn = rle_mask({"size": list(mask.shape), "counts": runs(mask)}, *mask.shape)
    assert np.array_equal(drawn, mask)


def test_long_runs_take_several_characters():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[1234:, 1500] = True
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    drawn = rle_mask({"size": [3000, 2000], "counts": encoded["counts"].decode()}, 3000, 2000)
    assert np.array_equal(drawn, mask)


@given(st.text(max_size=30))
def test_any_other_text_is_refused_or_is_what_pycocotools_reads(text):
    try:
        drawn = rle_mask({"size": [8, 9], "counts": text}, 8, 9)
    except BadMask:
        return
    assert np.array_equal(drawn, coco_mask.decode({"size": [8, 9], "counts": text.encode()}))


def test_runs_that_end_before_the_image_are_refused():
    # pycocotools 2.0.11 gives back uninitialised memory for these.
    for counts in ("", "0000", [10, 5], [80, -8], [73]):
        with pytest.raises(BadMask):
            rle_mask({"size": [8, 9], "counts": counts}, 8, 9)


def test_an_encoding_of_another_size_says_both_sizes():
    with pytest.raises(BadMask, match="9 x 8 px for an image of 18 x 16 px"):
        rle_mask({"size": [8, 9], "counts": [72]}, 16, 18)


def test_a_polygon_on_pixel_corners_covers_the_pixels_between_them():
    mask = polygon_mask(polygon(2, 3, 7, 9), 12, 10)
    expected = np.zeros((12, 10), dtype=bool)
    expected[3:9, 2:7] = True
    assert np.array_equal(mask, expected)


def test_several_polygons_are_one_mask():
    mask = polygon_mask(polygon(0, 0, 2, 2) + polygon(5, 5, 9, 9), 12, 10)
    assert mask.sum() == 4 + 16


def test_the_part_of_a_polygon_outside_of_the_image_is_cut_off():
    assert np.array_equal(polygon_mask(polygon(-4, -4, 3, 2), 12, 10), polygon_mask(polygon(0, 0, 3, 2), 12, 10))
    assert not polygon_mask(polygon(30, 30, 40, 40), 12, 10).any()


def test_a_polygon_without_the_outer_list_is_read():
    assert annotation_mask(polygon(2, 3, 7, 9)[0], 12, 10).sum() == 30


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3, 4]], "fewer than three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x, y pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, "six"]], "not a number"),
        ([[1, 2, 3, 4, 1e9, -1e9]], "far outside"),
        ([{"size": [12, 10], "counts": [120]}], "list of run-length encodings"),
        ({"size": [12, 10]}, "without size and counts"),
        ({"size": [12, 10], "counts": 7}, "neither a string nor a list"),
        ([], "no segmentation"),
        (None, "no segmentation"),
        ("polygon", "no segmentation"),
    ],
)
def test_what_cannot_be_drawn_has_its_reason(segmentation, reason):
    with pytest.raises(BadMask, match=reason):
        annotation_mask(segmentation, 12, 10)


@given(masks)
def test_a_mask_is_encoded_as_pycocotools_encodes_it(mask):
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert mask_rle(mask) == {"size": list(mask.shape), "counts": packed["counts"].decode()}


@given(masks, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_the_part_of_a_mask_inside_a_box_is_encoded_as_the_whole_mask(part, left, right, top, bottom):
    whole = np.pad(part, ((top, bottom), (left, right)))
    assert mask_rle(part, (left, top), whole.shape) == mask_rle(whole)


@pytest.mark.parametrize(
    "written",
    [
        str(polygon(2, 3, 7, 9)),
        '{"size": [12, 10], "counts": [0, 120]}',
        {"size": [12, 10], "counts": [0.0, 120.0]},
        {"size": ["12", 10.0], "counts": [0, 120]},
    ],
)
def test_what_went_through_a_table_is_read(written):
    assert annotation_mask(written, 12, 10).sum() in (30, 120)


def test_a_long_outline_with_short_sides_is_drawn():
    angle = np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    circle = np.stack([50 + 40 * np.cos(angle), 50 + 40 * np.sin(angle)], axis=1)
    assert abs(polygon_mask([circle.ravel().tolist()], 100, 100).sum() - np.pi * 1600) < 60
