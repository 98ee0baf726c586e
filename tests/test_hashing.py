"""The library's one hash: values count, memory layout does not."""

import hashlib

import numpy as np
import pytest
import torch

from samparser._hashing import sha256_of

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_is_hashed_by_its_row_major_bytes(dtype):
    tensor = torch.arange(24).reshape(2, 3, 2, 2).to(dtype)
    expected = hashlib.sha256(bytes(tensor.untyped_storage())).hexdigest()
    assert sha256_of(tensor) == expected
    assert sha256_of(tensor.to(memory_format=torch.channels_last)) == expected
    assert sha256_of(tensor.clone().requires_grad_(dtype.is_floating_point)) == expected


def test_parts_follow_one_another():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"name " + array.tobytes() + b"end").hexdigest()
    assert sha256_of("name ", array, b"end") == sha256_of("name ", torch.from_numpy(array), "end") == expected
    assert sha256_of("name ", array.T.copy().T, "end") == expected


@pytest.mark.parametrize("empty", [torch.empty(0, 3), np.empty((0, 3)), "", b""], ids=repr)
def test_what_is_empty_adds_nothing(empty):
    assert sha256_of("a", empty) == sha256_of("a")


def test_a_single_number_can_be_hashed():
    assert sha256_of(torch.tensor(1.0)) == sha256_of(torch.ones(1)) == sha256_of(np.float32([1.0]))


def test_a_tensor_without_values_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 5\) on the meta device"):
        sha256_of(torch.empty(3, 5, device="meta"))
