"""Logits at original size in windows, beside transformers' own resizing of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samparser.prediction import resize, to_original_size
from samparser.prediction.resize import MaskResizer
from samparser.sam.frame import Padded

SIZES = [(60, 90), (90, 60), (64, 64), (1, 1), (2, 3), (1, 70), (7, 5), (333, 211), (640, 33)]


def whole(logits, processor, size):
    """As `post_process_masks` of transformers, written out."""
    padded = F.interpolate(logits[:, None], (64, 64), mode="bilinear", align_corners=False)
    height, width = Padded(64).content(size)
    return F.interpolate(padded[:, :, :height, :width], size, mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pieces_put_together_are_the_logits_of_transformers(tiny_processor, generator, size, monkeypatch):
    monkeypatch.setattr(resize, "_PIECE", 500)
    logits = torch.randn(3, 16, 16, generator=generator)
    expected = whole(logits, tiny_processor, size)
    torch.testing.assert_close(to_original_size(logits, tiny_processor, size), expected, rtol=1e-5, atol=1e-6)
    ours = tiny_processor.post_process_masks([logits[:, None]], [size], [Padded(64).content(size)], binarize=False)[0]
    torch.testing.assert_close(ours[:, 0], expected, rtol=0, atol=0)


@settings(max_examples=60)
@given(st.sampled_from(SIZES), st.integers(0, 99), st.sampled_from([-2.0, -0.3, 0.0, 0.7, 2.5, 9.0]))
def test_the_window_of_a_mask_holds_all_of_it(tiny_processor, size, seed, threshold):
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(seed)) + torch.linspace(-3, 1, 16)
    resizer = MaskResizer(tiny_processor, size)
    x, y, part = resizer.mask(resizer.to_input(logits)[0], threshold)
    mask = np.zeros(size, dtype=bool)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    assert np.array_equal(mask, (to_original_size(logits, tiny_processor, size)[0] > threshold).numpy())


def test_only_the_box_of_a_mask_is_computed_and_only_a_few_rows_at_a_time(tiny_processor, monkeypatch):
    monkeypatch.setattr(resize, "_PIECE", 10_000)
    logits = torch.full((1, 16, 16), -1.0)
    logits[0, 4, 6] = 5
    size = (3000, 4000)
    resizer = MaskResizer(tiny_processor, size)
    plane = resizer.to_input(logits)[0]
    pieces = [tuple(piece.shape) for _, _, piece in resizer.pieces(plane, 0.0)]
    assert sum(height * width for height, width in pieces) < 0.05 * 3000 * 4000
    assert max(height * width for height, width in pieces) <= 10_000
    assert resizer.mask(plane, 6.0)[2].size == 0
