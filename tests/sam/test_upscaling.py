"""Upscaling as products over channels, and the order of its blocks."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from samparser.sam.upscaling import in_order


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
