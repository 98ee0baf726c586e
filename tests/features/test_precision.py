"""Features as they are stored, and what comes back."""

import pytest
import torch

from samparser.features.precision import DTYPES, channel_axis, from_stored, stored_bytes, stored_names, to_stored


@pytest.mark.parametrize("shape", [(8, 8, 24), (5, 8, 8), (7,), (3, 2)])
def test_eight_bits_are_within_half_a_step_of_each_channel(shape, generator):
    features = torch.randn(shape, generator=generator)
    axis = channel_axis(shape)
    features.select(axis, 0).mul_(1e5)  # a channel of outliers costs the others nothing
    features.select(axis, 1).zero_()
    stored = to_stored((features,), torch.int8)
    assert [tensor.dtype for tensor in stored.values()] == [torch.int8, torch.float32]
    (back,) = from_stored(stored)
    for channel in range(shape[axis]):
        ours, theirs = back.select(axis, channel), features.select(axis, channel)
        half_a_step = theirs.abs().max() / 127 / 2
        assert (ours - theirs).abs().max() <= half_a_step * (1 + 1e-5)
    assert stored["scales0"].numel() == shape[axis]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_floats_are_rounded_once_or_not_at_all(dtype, generator):
    features = torch.randn(4, 4, 3, generator=generator), torch.randn(2, 5, generator=generator)
    back = from_stored(to_stored(features, dtype))
    for ours, theirs in zip(back, features, strict=True):
        assert torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_bytes_of_an_entry_are_counted_exactly(dtype, generator):
    features = torch.randn(8, 8, 24, generator=generator), torch.randn(3, 4, 4, generator=generator)
    stored = to_stored(features, dtype)
    assert list(stored) == stored_names(2, dtype)
    held = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert held == stored_bytes(((8, 8, 24), (3, 4, 4)), dtype)
