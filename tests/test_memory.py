"""Errors of memory become one that names the settings that need less."""

import pytest
import torch

from samparser._memory import OutOfMemoryError, advising


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_kind_of_them_gets_the_advice(error):
    said = r"ran out of memory\. Take smaller bites\."
    with pytest.raises(OutOfMemoryError, match=said) as caught, advising("Take smaller bites."):
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes differ$") as caught, advising("Take smaller bites."):
        raise RuntimeError("shapes differ")
    assert type(caught.value) is RuntimeError
