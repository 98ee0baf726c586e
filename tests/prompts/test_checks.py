"""Prompts in another frame or format are recognised and the message says which."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samparser.prompts.checks import check_boxes, check_image, check_points
from samparser.sam import Padded

SIZE = (300, 400)  # height, width


def boxes_error(boxes, size=SIZE, target=1024):
    with pytest.raises(ValueError) as caught:
        check_boxes(boxes, size, Padded(target))
    return str(caught.value)


@given(
    st.lists(
        st.tuples(st.floats(0, 398), st.floats(0, 298), st.floats(1.5, 400), st.floats(1.5, 300)).map(
            lambda t: (t[0], t[1], min(400, t[0] + t[2]), min(300, t[1] + t[3]))
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_box_inside_the_image_is_accepted_unchanged(boxes):
    assert np.array_equal(check_boxes(boxes, SIZE, Padded(1024)), np.array(boxes, dtype=np.float32))


def test_a_box_may_end_a_pixel_outside_as_annotations_do():
    boxes = [[-0.5, 0, 400.9, 300]]
    assert np.array_equal(check_boxes(boxes, SIZE, Padded(1024)), np.array(boxes, dtype=np.float32))


@pytest.mark.parametrize("empty", [[], np.zeros((0, 4))])
def test_no_box_is_no_error(empty):
    assert check_boxes(empty, SIZE, Padded(1024)).shape == (0, 4)


def test_normalised_boxes_are_recognised():
    message = boxes_error([[0.1, 0.2, 0.5, 0.75], [0, 0, 1, 1]])
    assert "first (0.1, 0.2, 0.5, 0.75)" in message
    assert "multiply x by its width 400 and y by its height 300" in message


def test_one_real_box_in_the_first_pixel_is_not_taken_for_a_normalised_one():
    assert check_boxes([[0, 0, 1, 1]], SIZE, Padded(1024)).shape == (1, 4)


def test_coco_boxes_are_recognised():
    message = boxes_error([[300, 200, 50, 60], [10, 10, 40, 50]])
    assert "Box 0 of 2, (300, 200, 50, 60), is empty or inverted" in message
    assert "COCO's (x, y, width, height): pass (x, y, x + width, y + height)" in message


def test_inverted_boxes_that_would_not_fit_as_coco_boxes_are_not_called_so():
    message = boxes_error([[390, 10, 300, 50], [395, 20, 200, 80]])
    assert "(390, 10, 300, 50), is empty or inverted" in message
    assert "COCO" not in message


def test_boxes_of_the_resized_input_are_recognised():
    message = boxes_error([[10, 20, 900, 700]])
    assert "(10, 20, 900, 700), is outside the image of 400 x 300 (width x height) pixels" in message
    assert "resized input (longest side 1024)" in message


def test_exchanged_axes_are_recognised():
    message = boxes_error([[10, 20, 100, 390]], size=(300, 400), target=64)
    assert "x and y exchanged: the order is (x0, y0, x1, y1)" in message


def test_a_single_slip_gets_no_wrong_advice():
    good = [[10 * i, 10, 10 * i + 30, 50] for i in range(9)]
    message = boxes_error([*good, [50, 60, 20, 90]])
    assert "Box 9 of 10, (50, 60, 20, 90), is empty or inverted" in message
    assert "COCO" not in message
    assert message.endswith("in pixels of the original image.")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([1, 2, 3, 4], r"shape \(N, 4\).*got \(4,\)"),
        ([[1, 2, 3]], r"got \(1, 3\)"),
        ([[1, 2, 3, 4], [1, np.nan, 3, 4]], r"boxes must be finite; row 1 is not"),
        ([[5, 5, 5, 10]], r"Box 0 of 1, \(5, 5, 5, 10\), is empty or inverted"),
        ([[-20, 0, 50, 50]], r"is outside the image of 400 x 300"),
    ],
)
def test_malformed_boxes_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        check_boxes(boxes, SIZE, Padded(64))


def test_one_point_per_object_several_and_unequal_numbers_have_one_form():
    points, labels = check_points([[1, 2], [3, 4]], None, SIZE)
    assert points.tolist() == [[[1, 2]], [[3, 4]]]
    assert labels.tolist() == [[1], [1]]
    points, labels = check_points([[[1, 2], [3, 4]]], [[1, 0]], SIZE)
    assert points.shape == (1, 2, 2)
    assert labels.tolist() == [[1, 0]]
    points, labels = check_points([[[1, 2]], [[3, 4], [5, 6]]], [[1], [1, 0]], SIZE)
    assert points.tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]
    assert labels.tolist() == [[1, -10], [1, 0]]
    assert check_points([[1, 2], [3, 4]], [1, 0], SIZE)[1].tolist() == [[1], [0]]
    assert check_points([], None, SIZE)[0].shape == (0, 1, 2)


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[0.5, 0.25], [0.1, 0.9]], None, r"first \(0\.5, 0\.25\)\): they look normalised.*width 400.*height 300"),
        ([[10, 380]], None, r"The point \(10, 380\) is outside the image of 400 x 300.*x and y exchanged"),
        ([[500, 600]], None, r"\(500, 600\) is outside the image of 400 x 300 \(width x height\) pixels\..*image\.$"),
        ([[1, 2, 3]], None, r"got shapes \[\(1, 3\)\]"),
        ([[1, 2]], [[1, 0]], r"the objects have \[1\] points and \[2\] labels"),
        ([[1, 2]], [2], r"labels must be 1 .* or 0 .*; got \[2\]"),
        ([[np.inf, 2]], None, r"points must be finite; row 0"),
    ],
)
def test_malformed_points_are_refused(points, labels, message):
    with pytest.raises(ValueError, match=message):
        check_points(points, labels, SIZE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"got float32 \(4, 5, 3\): scale it to 0\.\.255"),
        (np.zeros((4, 5), np.uint8), r"got uint8 \(4, 5\): for a grey image repeat it"),
        (np.zeros((3, 40, 50), np.uint8), r"got uint8 \(3, 40, 50\): the channels come last"),
        (np.zeros((4, 5, 4), np.uint8), r"got uint8 \(4, 5, 4\): drop the alpha channel"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"got uint8 \(2, 4, 5, 3\): give one image at a time"),
    ],
)
def test_other_images_than_uint8_rgb_are_refused_with_the_conversion(image, message):
    with pytest.raises(ValueError, match=message):
        check_image(image)
