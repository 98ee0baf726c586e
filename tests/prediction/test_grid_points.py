"""Crops and grids of points: those of transformers, in pixels of the image."""

import numpy as np
import pytest

from samparser.prediction.grid_points import crop_boxes, point_grid
from tests.conftest import TINY_SIZE


def misplaced(images):
    """Whether this transformers puts the points of crops by the sides of the whole image, as 5.6 does."""
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    _, points, *_ = images.generate_crop_boxes(picture, TINY_SIZE, 1, points_per_crop=5)
    x0, y0, x1, y1 = crop_boxes((40, 60), 1)[1]
    sides = [int(side * TINY_SIZE / 60 + 0.5) / side for side in (60, 40)]
    return np.allclose(point_grid((y1 - y0, x1 - x0), 5) * sides, points[0, :, 1].numpy())


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (300, 299), (17, 400)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_and_points_are_those_of_transformers(tiny_processor, size, layers):
    images = tiny_processor.image_processor
    picture = np.zeros((*size, 3), dtype=np.uint8)
    boxes, points, crops, labels = images.generate_crop_boxes(picture, TINY_SIZE, layers, points_per_crop=5)
    found = crop_boxes(size, layers)
    assert len(found) == [1, 5, 21][layers]
    assert found == [tuple(box) for box in boxes.int().tolist()]
    assert labels.all()
    if layers and misplaced(images):
        pytest.skip("this transformers puts the points of crops by the sides of the whole image")
    for number, (x0, y0, x1, y1) in enumerate(found):
        assert crops[number].shape == (3, y1 - y0, x1 - x0)
        longer = max(x1 - x0, y1 - y0)
        sides = [int(side * TINY_SIZE / longer + 0.5) / side for side in (x1 - x0, y1 - y0)]
        assert np.allclose(point_grid((y1 - y0, x1 - x0), 5) * sides, points[0, :, number].numpy())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 9), (5, 5)])
def test_no_crop_of_the_smallest_images_is_empty(size):
    for x0, y0, x1, y1 in crop_boxes(size, 3):
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]


def test_together_the_crops_of_a_layer_cover_the_image():
    covered = np.zeros((70, 90), dtype=int)
    for x0, y0, x1, y1 in crop_boxes(covered.shape, 2)[5:]:
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1


def test_points_lie_in_the_middle_of_equal_parts():
    points = point_grid((30, 60), 3)
    assert points.tolist() == [[x, y] for y in (5, 15, 25) for x in (10, 30, 50)]
