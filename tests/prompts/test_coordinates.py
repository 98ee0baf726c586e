import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samparser.prompts.coordinates import (
    inside_point,
    jitter_boxes,
    random_points,
)
from samparser.sam import Padded


@st.composite
def boxes_and_size(draw):
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))))
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), (height, width)


directions = st.sampled_from(["outward", "both"])


@given(boxes_and_size(), st.integers(0, 2**32), directions, st.sampled_from([None, 0.0, 0.3]))
def test_jittered_boxes_stay_inside_and_keep_their_order(case, seed, direction, fraction):
    boxes, size = case
    rng = np.random.default_rng(seed)
    moved = jitter_boxes(boxes, size, 0, 20, rng, direction=direction, max_fraction=fraction)
    assert moved.shape == boxes.shape
    assert moved.dtype == np.float32
    assert (moved >= 0).all()
    assert (moved <= [size[1], size[0], size[1], size[0]]).all()
    assert (moved[:, 2] - moved[:, 0] >= 1 - 1e-4).all()
    assert (moved[:, 3] - moved[:, 1] >= 1 - 1e-4).all()
    if direction == "outward":
        assert (moved[:, :2] <= boxes[:, :2]).all()
        assert (moved[:, 2:] >= boxes[:, 2:]).all()
    if fraction is not None:
        sides = (boxes[:, [2, 3, 2, 3]] - boxes[:, [0, 1, 0, 1]]) * fraction
        assert (np.abs(moved - boxes) <= sides + 1e-4).all()


def test_each_side_moves_evenly_over_the_whole_range():
    boxes = np.tile(np.array([[100.0, 100, 200, 200]]), (20000, 1))
    moves = np.abs(jitter_boxes(boxes, (300, 300), 5, 20, np.random.default_rng(0)) - boxes)
    assert moves.min() >= 5 - 1e-4
    assert moves.max() <= 20
    np.testing.assert_allclose(moves.mean(axis=0), 12.5, atol=0.2)
    np.testing.assert_allclose(moves.std(axis=0), 15 / 12**0.5, atol=0.1)
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.03  # sides move independently
    both = jitter_boxes(boxes, (300, 300), 5, 20, np.random.default_rng(0), direction="both") - boxes
    assert abs((both > 0).mean() - 0.5) < 0.02


def test_jitter_of_zero_changes_nothing_and_the_same_seed_moves_the_same_way():
    boxes = np.array([[1, 2, 30, 40]], dtype=np.float32)
    assert np.array_equal(jitter_boxes(boxes, (50, 50), 0, 0, np.random.default_rng(0)), boxes)
    twice = [jitter_boxes(boxes, (50, 50), 0, 20, np.random.default_rng(7)) for _ in range(2)]
    assert np.array_equal(*twice)


def test_an_impossible_range_is_refused():
    with pytest.raises(ValueError, match="low = 5, high = 2"):
        jitter_boxes(np.zeros((1, 4)), (9, 9), 5, 2, np.random.default_rng(0))


def test_coordinates_reach_the_input_frame_as_the_processor_takes_them(tiny_processor):
    size = (37, 53)
    boxes = [[[1.0, 2.0, 30.0, 31.0], [0.0, 0.0, 53.0, 37.0]]]
    points = [[[[5.0, 6.0]], [[52.0, 36.0]]]]
    image = np.zeros((*size, 3), dtype=np.uint8)
    encoded = tiny_processor(image, input_boxes=boxes, input_points=points, return_tensors="pt")
    np.testing.assert_allclose(Padded(64).to_input(boxes[0], size), encoded["input_boxes"][0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(Padded(64).to_input(points[0], size), encoded["input_points"][0].numpy(), rtol=1e-6)


def test_the_whole_image_becomes_the_whole_resized_image():
    assert Padded(64).to_input(np.array([0, 0, 53, 37]), (37, 53)).tolist() == [
        0,
        0,
        64,
        Padded(64).content((37, 53))[0],
    ]


def test_anything_but_points_and_boxes_is_refused():
    with pytest.raises(ValueError, match=r"points .* or boxes .*, got an array of shape \(5, 3\)"):
        Padded(8).to_input(np.zeros((5, 3)), (4, 4))


def brute_force_depth(mask: np.ndarray, y: int, x: int) -> float:
    """Distance from a pixel to the nearest one that is not in the mask, the image's surroundings included."""
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    return float(np.sqrt(((outside - [y, x]) ** 2).sum(axis=1)).min())


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_the_inside_point_is_as_deep_as_any(seed, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < 0.8
    if not mask.any():
        return
    x, y = inside_point(mask) - 0.5
    assert mask[int(y), int(x)]
    depths = [brute_force_depth(mask, *place) for place in np.argwhere(mask).tolist()]
    assert brute_force_depth(mask, int(y), int(x)) == max(depths)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_random_points_are_centres_of_pixels_of_the_mask(seed, count):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) < 0.2
    mask[3, 4] = True
    points = random_points(mask, count, rng)
    assert points.shape == (count, 2)
    columns, rows = (points - 0.5).astype(int).T
    assert mask[rows, columns].all()
    if count <= mask.sum():
        assert len({tuple(point) for point in points.tolist()}) == count


def test_points_of_an_empty_mask_are_refused():
    with pytest.raises(ValueError, match="empty"):
        inside_point(np.zeros((3, 3), dtype=bool))
    with pytest.raises(ValueError, match="empty"):
        random_points(np.zeros((3, 3), dtype=bool), 1, np.random.default_rng(0))
