import numpy as np
import pytest

from samparser.data import Instance, Sample
from tests.data.files import full_mask


def test_an_instance_gives_back_the_mask_that_it_was_cropped_from():
    mask = np.zeros((9, 12), dtype=bool)
    mask[3, 4] = mask[6, 8] = True
    instance = Instance.from_mask(mask, 2, "a")
    assert instance.box == (4, 3, 9, 7)
    assert instance.mask.shape == (4, 5)
    assert instance.area == 2
    assert np.array_equal(full_mask(instance, 9, 12), mask)
    assert instance.mask.base is None  # a view would keep the whole mask in memory


def test_an_offset_moves_the_box():
    assert Instance.from_mask(np.ones((2, 3), dtype=bool), 1, "a", offset=(10, 20)).box == (10, 20, 13, 22)


def test_an_empty_mask_gives_no_instance():
    assert Instance.from_mask(np.zeros((4, 4), dtype=bool), 1, "a") is None


def test_a_mask_that_does_not_fill_its_box_is_refused():
    with pytest.raises(ValueError, match=r"Instance 7: the box \(0, 0, 3, 2\) needs a bool mask of shape \(2, 3\)"):
        Instance((0, 0, 3, 2), np.ones((3, 2), dtype=bool), 1, "7")


def test_boxes_and_masks_of_a_sample_follow_the_order_of_its_instances():
    first = Instance((1, 2, 4, 5), np.ones((3, 3), dtype=bool), 1, "a")
    second = Instance((0, 0, 2, 1), np.ones((1, 2), dtype=bool), 1, "b")
    sample = Sample("x", np.zeros((6, 8, 3), dtype=np.uint8), (first, second))
    assert sample.size == (6, 8)
    assert sample.boxes.dtype == np.float32
    assert sample.boxes.tolist() == [[1, 2, 4, 5], [0, 0, 2, 1]]
    assert sample.masks.shape == (2, 6, 8)
    assert [mask.sum() for mask in sample.masks] == [9, 2]
    assert np.array_equal(sample.masks[0], full_mask(first, 6, 8))


def test_a_sample_without_instances_has_empty_arrays_of_the_right_shape():
    sample = Sample("x", np.zeros((6, 8, 3), dtype=np.uint8), ())
    assert sample.boxes.shape == (0, 4)
    assert sample.masks.shape == (0, 6, 8)


def test_a_box_outside_of_the_image_is_refused():
    instance = Instance((5, 0, 9, 2), np.ones((2, 4), dtype=bool), 1, "a")
    with pytest.raises(ValueError, match=r"x: the box \(5, 0, 9, 2\) of instance a is not inside the 8 x 6 image"):
        Sample("x", np.zeros((6, 8, 3), dtype=np.uint8), (instance,))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8)]
)
def test_an_image_that_is_not_uint8_rgb_is_refused(image):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
        Sample("x", image, ())


def test_void_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"void must be bool \(4, 4\)"):
        Sample("x", np.zeros((4, 4, 3), np.uint8), (), void=np.zeros((2, 2), bool))
