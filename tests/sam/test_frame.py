"""Frames: where the pixels of an image lie in a model's input, and back, as transformers' processors do it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from samparser.sam.frame import Padded, Squashed, frame_of

SIDES = st.integers(4, 3000)
KINDS = st.sampled_from([Padded, Squashed])
FRAMES = st.builds(lambda kind, size: kind(size), KINDS, st.sampled_from([64, 1008, 1024]))


@given(FRAMES, st.tuples(SIDES, SIDES))
def test_the_corners_of_an_image_are_the_corners_of_its_part_of_the_square(frame, original):
    height, width = frame.content(original)
    assert max(height, width) == frame.size
    corners = frame.to_input(np.array([0, 0, original[1], original[0]]), original)
    np.testing.assert_allclose(corners, [0, 0, width, height], rtol=1e-6)
    if isinstance(frame, Squashed):
        assert (height, width) == (frame.size, frame.size)


@given(FRAMES, st.tuples(SIDES, SIDES), st.integers(0, 2**32 - 1))
def test_points_and_boxes_come_back_by_the_inverse_ratio(frame, original, seed):
    height, width = frame.content(original)
    if min(height, width) == 0:
        return  # too narrow for any model
    boxes = np.random.default_rng(seed).uniform(0, 1, (3, 4)) * np.tile(original[::-1], 2)
    there = frame.to_input(boxes, original)
    assert there.dtype == np.float32
    np.testing.assert_array_equal(there.reshape(-1, 2), frame.to_input(boxes.reshape(-1, 2), original))
    back = there.astype(np.float64) * np.tile([original[1] / width, original[0] / height], 2)
    np.testing.assert_allclose(back, boxes, rtol=1e-6, atol=1e-4)


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.sampled_from([64, 256, 1024]))
def test_the_padded_content_is_what_transformers_resizes_to(original, size):
    expected = SamImageProcessorPil()._get_preprocess_shape(original, size)
    assert Padded(size).content(original) == expected


@pytest.mark.parametrize("original", [(48, 64), (130, 50), (64, 64), (7, 9)])
def test_logits_go_to_the_image_as_post_process_masks_takes_them(original):
    logits = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    frame, processor = Padded(64), SamImageProcessorPil(pad_size={"height": 64, "width": 64})
    expected = processor.post_process_masks([logits], [original], [frame.content(original)], binarize=False)[0]
    squashed = F.interpolate(logits, original, mode="bilinear", align_corners=False)
    for kind, masks in ((frame, expected), (Squashed(64), squashed)):
        assert torch.equal(kind.to_original(logits, original), masks)
        assert torch.equal(kind.to_original(logits[:, 0], original), masks[:, 0])
        torch.testing.assert_close(kind.to_original(logits[0, 0], original), masks[0, 0])


@given(FRAMES, st.tuples(st.integers(8, 60), st.integers(8, 60)), st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_a_mask_around_a_point_of_the_input_comes_back_around_the_point_of_the_image(frame, original, x, y):
    point = np.array([x * original[1], y * original[0]])
    there = frame.to_input(point, original) / frame.size  # parts of the square
    centres = (torch.arange(64) + 0.5) / 64
    logits = -((centres[None, :] - there[0]) ** 2 + (centres[:, None] - there[1]) ** 2)
    back = frame.to_original(logits, original)
    row, column = divmod(int(back.argmax()), original[1])
    # The peak is no finer than a place of the logits or a pixel, in pixels of the image.
    reach = 1 + max(original) / 64
    assert abs(column + 0.5 - point[0]) <= reach
    assert abs(row + 0.5 - point[1]) <= reach


def test_half_precision_gives_float32_and_no_masks_give_none():
    logits = torch.zeros(2, 16, 16, dtype=torch.bfloat16)
    for frame in (Padded(64), Squashed(64)):
        assert frame.to_original(logits, (30, 40)).dtype == torch.float32
        assert frame.to_original(logits[:0], (30, 40)).shape == (0, 30, 40)


def test_frames_are_values():
    assert Padded(64) == Padded(64) != Padded(128)
    assert Padded(64) != Squashed(64)
    assert len({Padded(64), Padded(64), Squashed(64)}) == 2


def test_the_frame_is_read_off_a_processor(tiny_processor):
    square = SimpleNamespace(size={"height": 1008, "width": 1008})
    assert frame_of(tiny_processor) == frame_of(tiny_processor.image_processor) == Padded(64)
    assert frame_of(square) == Squashed(1008)
    square.size = {"height": 1008, "width": 64}
    with pytest.raises(TypeError, match=r"SimpleNamespace resizes to .*1008.*longest edge"):
        frame_of(square)


def test_what_is_no_coordinate_is_refused():
    with pytest.raises(ValueError, match=r"points \(..., 2\) or boxes \(..., 4\), got an array of shape \(3,\)"):
        Padded(64).to_input(np.zeros(3), (10, 10))
