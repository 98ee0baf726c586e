"""What decides whether a candidate mask is kept, on planes small enough to count."""

import numpy as np
import pytest
import torch

from samparser.prediction.cropped_mask import CroppedMask
from samparser.prediction.mask_filters import (
    Thresholds,
    check_thresholds,
    corners_of,
    is_cut_off,
    judgements,
    own_thresholds,
    stability_and_mask,
)
from samparser.prediction.resize import MaskResizer

LIMITS = Thresholds(0.88, 0.95)


def mask_at(x0, y0, x1, y1, size=(100, 200)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return CroppedMask.of(mask)


def test_stability_is_the_part_of_the_area_that_stays():
    logits = torch.tensor([[[2.0, 0.5], [-0.5, -2.0]], [[-2.0, -2.0], [-2.0, -2.0]]])
    assert list(judgements(logits, torch.tensor([0.5, 0.25]))) == [
        Thresholds(0.5, pytest.approx(1 / 3)),
        Thresholds(0.25, 0.0),
    ]


def test_stability_at_original_size_is_counted_there(tiny_processor):
    """An image of the input's own size is not resized in the second step."""
    plane = torch.full((64, 64), -2.0)
    plane[:4, :5], plane[4, :5], plane[10, 10] = 2.0, 0.5, -0.5
    stability, (x, y, mask) = stability_and_mask(MaskResizer(tiny_processor, (64, 64)), plane)
    assert stability == np.float32(20 / 26)
    whole = np.zeros((64, 64), dtype=bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert np.array_equal(whole, plane.numpy() > 0)
    nothing = torch.full((64, 64), -2.0)
    assert stability_and_mask(MaskResizer(tiny_processor, (64, 64)), nothing)[0] == 0


def test_a_mask_is_cut_off_by_an_edge_of_its_crop_that_is_none_of_the_image():
    crop, size = (100, 0, 200, 60), (100, 200)
    assert not is_cut_off(mask_at(140, 5, 198, 30), crop, size)
    assert is_cut_off(mask_at(119, 5, 150, 30), crop, size)
    assert not is_cut_off(mask_at(121, 5, 150, 30), crop, size)
    assert is_cut_off(mask_at(140, 5, 150, 41), crop, size)
    assert not is_cut_off(mask_at(140, 5, 150, 40), crop, size)
    assert not is_cut_off(mask_at(0, 0, 200, 100), (0, 0, 200, 100), size)


def test_boxes_end_at_the_last_pixel():
    assert corners_of([mask_at(1, 2, 5, 9), mask_at(0, 0, 0, 0)]).tolist() == [[1, 2, 4, 8], [0, 0, 0, 0]]
    assert corners_of([]).shape == (0, 4)


def test_own_thresholds_leave_the_best_of_a_models_masks():
    judged = [Thresholds(score / 100, 0.5) for score in range(41)]
    own = own_thresholds(judged, LIMITS, None, None)
    assert own == (pytest.approx(0.38), pytest.approx(0.45))
    assert sum(one.pred_iou > own.pred_iou for one in judged) == 2
    assert own_thresholds(judged, LIMITS, 0.1, None) == (0.1, pytest.approx(0.45))
    assert own_thresholds(judged, LIMITS, None, 0.6) == (pytest.approx(0.38), 0.6)
    assert own_thresholds(judged, LIMITS, 0.5, None) is None
    assert own_thresholds(judged, LIMITS, 0.1, 0.1) is None
    sure = [Thresholds(0.99, 1.0)] * 30
    assert own_thresholds(sure, LIMITS, None, None) == (0.88, 0.9)


def test_thresholds_below_zero_are_refused():
    check_thresholds(0.0, None)
    with pytest.raises(ValueError, match=r"stability_score_thresh must be 0 or more .*got -0\.1"):
        check_thresholds(0.5, -0.1)
    with pytest.raises(ValueError, match=r"pred_iou_thresh must be 0 or more .*got nan"):
        check_thresholds(float("nan"), 0.5)
