"""Upscaling as products over channels, and the order of its blocks."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samparser.sam.upscaling import in_blocks, in_order


@settings(deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_blocks_in_order_are_two_transposed_convolutions(batch, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 3, height, width, generator=generator)
    first, second = torch.randn(3, 2, 2, 2, generator=generator), torch.randn(2, 1, 2, 2, generator=generator)
    expected = F.conv_transpose2d(F.conv_transpose2d(x, first, stride=2), second, stride=2)
    rows = x.permute(0, 2, 3, 1).numpy()
    one = np.einsum("bhwc,cokl->bhwklo", rows, first.numpy())
    two = np.einsum("bhwklo,opmn->bhwklmnp", one, second.numpy())
    blocks = torch.from_numpy(two.reshape(batch, 1, 4 * height, 4 * width))
    torch.testing.assert_close(in_order(blocks), expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 4), width=st.integers(1, 5), steps=st.integers(1, 2))
def test_an_image_in_blocks_has_each_pixel_where_the_enlargements_write_it(batch, height, width, steps):
    image = torch.arange(batch * 2 * height * width * 4**steps).view(batch, 2, height << steps, width << steps)
    expected = []
    for y, x in np.ndindex(height, width):
        block = image[..., y << steps : (y + 1) << steps, x << steps : (x + 1) << steps]
        quarters = [block] if steps == 1 else [block[..., i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
        expected += [quarter[..., i, j] for quarter in quarters for i, j in np.ndindex(2, 2)]
    blocks = in_blocks(image, steps)
    assert torch.equal(blocks.flatten(2), torch.stack(expected, -1))
    if steps == 2:
        assert torch.equal(in_order(blocks), image)


def test_an_image_in_blocks_has_its_channels_last_in_memory():
    blocks = in_blocks(torch.randn(2, 3, 16, 16), 2)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
