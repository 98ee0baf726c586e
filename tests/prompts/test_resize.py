import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from samparser.data import Instance
from samparser.prompts.resize import resize_instance, resize_mask
from samparser.sam.frame import Padded


def interpolated(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The whole mask resized by torch: float, 1 where fully covered."""
    return F.interpolate(
        torch.from_numpy(mask)[None, None].double(), size, mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()


@st.composite
def masks(draw):
    height, width = draw(st.integers(3, 90)), draw(st.integers(3, 90))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(draw(st.integers(1, 3))):
        x0, y0 = rng.integers(width), rng.integers(height)
        mask[y0 : y0 + rng.integers(1, height + 1), x0 : x0 + rng.integers(1, width + 1)] = True
    return mask


@given(masks(), st.sampled_from([16, 64, 100]))
def test_resizing_within_the_box_equals_resizing_the_whole_mask(mask, target):
    instance = Instance.from_mask(mask, 1, "a")
    height, width = Padded(target).content(mask.shape)
    if min(height, width) < 2:
        return
    out = np.zeros((target, target), dtype=bool)
    resize_instance(instance, mask.shape, (height, width), out)
    coverage = interpolated(mask, (height, width))
    # Pillow works in 8 bits: only pixels that are half covered, to that precision, may differ.
    clear = np.abs(coverage - 0.5) > 0.02
    if (coverage >= 0.52).any():
        assert np.array_equal(out[:height, :width][clear], (coverage >= 0.5)[clear])
    assert out.any()
    assert not out[height:].any()
    assert not out[:, width:].any()


@given(masks(), st.sampled_from([16, 64, 100]))
def test_a_whole_mask_is_resized_as_torch_does(mask, target):
    height, width = Padded(target).content(mask.shape)
    if min(height, width) < 2:
        return  # torch 2.13 repeats the first row when it resizes to a width of one pixel
    coverage = interpolated(mask, (height, width))
    clear = np.abs(coverage - 0.5) > 0.02
    assert np.array_equal(resize_mask(mask, (height, width))[clear], (coverage >= 0.5)[clear])


def test_the_area_keeps_its_share_of_the_image():
    rows, columns = np.mgrid[:300, :400]
    disc = (rows - 140) ** 2 + (columns - 230) ** 2 < 90**2
    for target in (64, 256, 1024):
        out = np.zeros((target, target), dtype=bool)
        resize_instance(Instance.from_mask(disc, 1, "a"), disc.shape, Padded(target).content(disc.shape), out)
        scale = target / 400
        assert abs(out.sum() / (disc.sum() * scale**2) - 1) < 0.02


def test_an_instance_smaller_than_half_a_pixel_becomes_one_pixel():
    mask = np.zeros((640, 640), dtype=bool)
    mask[325, 107] = True
    out = np.zeros((64, 64), dtype=bool)
    resize_instance(Instance.from_mask(mask, 1, "a"), mask.shape, (64, 64), out)
    assert np.argwhere(out).tolist() == [[32, 10]]
