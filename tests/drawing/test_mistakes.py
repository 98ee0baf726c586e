"""Pictures of mistakes: which pixel has which colour, which part is shown, and what is refused."""

import numpy as np
import pytest

from samparser.drawing import CloseUp, draw_mistakes, mistakes
from samparser.drawing.mistakes import MISSED, RIGHT, TOO_MUCH, fullest_square
from samparser.drawing.palette import rgb
from tests.drawing.examples import example


def strip(*columns):
    mask = np.zeros((1, 6), dtype=bool)
    mask[:, list(columns)] = True
    return mask


def test_each_pixel_says_whether_it_is_right_too_much_missed_or_ground():
    image = np.full((1, 6, 3), (30, 60, 90), np.uint8)
    picture = mistakes(image, strip(0, 1, 2)[None], strip(1, 2, 3)[None], opacity=1)[0]
    grey = np.array([60, 60, 60])
    expected = [rgb(MISSED), rgb(RIGHT), rgb(RIGHT), rgb(TOO_MUCH), grey, grey]
    assert np.array_equal(picture, expected)
    half = mistakes(image, strip(0)[None], strip(0)[None], opacity=0.5)[0]
    assert np.allclose(half[0], (rgb(RIGHT).astype(float) + 60) / 2, atol=0.5)


def test_a_mask_on_the_neighbouring_object_is_too_much_although_something_is_there():
    image = np.zeros((1, 6, 3), np.uint8)
    truth = np.stack([strip(0, 1), strip(2, 3)])
    picture = mistakes(image, truth, np.stack([strip(0, 1, 2), strip(2, 3)]), opacity=1)[0]
    assert np.array_equal(picture[:4], [rgb(RIGHT), rgb(RIGHT), rgb(TOO_MUCH), rgb(RIGHT)])


def test_the_square_that_is_shown_holds_the_most_whole_boxes():
    boxes = np.array([[0, 0, 30, 8], [61, 60, 69, 70], [70, 70, 79.5, 79.5], [40, 0, 50, 99]])
    rows, columns = fullest_square(boxes, (100, 120), 20)
    assert (rows, columns) == (slice(60, 80), slice(60, 80))
    among_equals = fullest_square(np.array([[10, 10, 12, 12]]), (40, 40), 20)
    assert among_equals == (slice(0, 20), slice(0, 20))
    assert fullest_square(boxes, (10, 120), 200) == (slice(0, 10), slice(0, 120))


def test_a_figure_shows_boxes_once_and_each_model_with_its_mean_iou(tmp_path, figures):
    image, truth = example()
    image = image // 4
    image[0, 0] = 85  # a third of what there could be
    boxes = np.array([[1, 1, 12, 12], [3, 4, 15, 15], [10, 10, 22, 22]], np.float32)
    nothing = np.zeros_like(truth)
    row = CloseUp(image, truth, boxes, {"before": nothing, "after": truth}, "median")
    draw_mistakes([row, row], tmp_path / "x.png", side=24)
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["the boxes given", "before", "after", "", "", ""]
    assert [axis.get_xlabel() for axis in axes[:3]] == ["", "mean IoU 0.0 %", "mean IoU 100.0 %"]
    assert [axes[0].get_ylabel(), axes[3].get_ylabel()] == ["median", "median"]
    view = fullest_square(boxes, image.shape[:2], 24)
    assert np.array_equal(axes[0].get_images()[0].get_array(), image[view] * 3)
    assert np.array_equal(axes[2].get_images()[0].get_array(), mistakes(image, truth, truth)[view])
    # A box in pixel edges: those of a pixel drawn at x reach from x - 0.5 to x + 0.5.
    first = axes[0].patches[0]
    assert (first.get_x(), first.get_width()) == (1 - view[1].start - 0.5, 11)
    assert [len(axis.patches) for axis in axes] == [3, 0, 0, 3, 0, 0]
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_by_default_four_objects_fit_side_by_side(tmp_path, figures):
    image, truth = np.zeros((200, 300, 3), np.uint8), np.zeros((2, 200, 300), dtype=bool)
    boxes = np.array([[0, 0, 10, 20], [60, 50, 90, 55]])
    draw_mistakes([CloseUp(image, truth, boxes, {"after": truth})], tmp_path / "x.png")
    assert figures[0].axes[0].get_images()[0].get_array().shape == (100, 100, 3)  # 4 times the median of 20 and 30


def test_rows_with_different_models_are_refused(tmp_path):
    image, truth = example()
    rows = [CloseUp(image, truth, np.zeros((3, 4)), {name: truth}) for name in ("before", "after")]
    with pytest.raises(ValueError, match="the same models"):
        draw_mistakes(rows, tmp_path / "x.png")
    with pytest.raises(ValueError, match="at least one row"):
        draw_mistakes([], tmp_path / "x.png")
