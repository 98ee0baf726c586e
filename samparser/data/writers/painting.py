"""Instances painted into one array of ids."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..sample import Sample


def painted(sample: Sample, skip: int | None = None) -> tuple[np.ndarray, Counter[str]]:
    """Return the instances of a sample as ids, smaller ones over larger ones, and what they hide.

    Args:
        sample: The sample.
        skip: An id that no instance gets.

    Returns:
        int64 (H, W): 0 for the background, else the instance's place counted from 1, without `skip`; and how many
        instances lost pixels, or all of them, to others.
    """
    many = len(sample.instances)
    numbers = object_ids(many, skip)
    ids = np.zeros(sample.size, dtype=np.int64)
    order = sorted(range(many), key=lambda place: -sample.instances[place].area)
    for place in order:
        x0, y0, x1, y1 = sample.instances[place].box
        ids[y0:y1, x0:x1][sample.instances[place].mask] = numbers[place]
    lost: Counter[str] = Counter()
    left = np.bincount(ids.ravel(), minlength=many + 2)
    for place, instance in enumerate(sample.instances):
        if left[numbers[place]] == 0:
            lost["objects, wholly under others"] += 1
        elif left[numbers[place]] < instance.area:
            lost["objects, in part: pixels under other objects"] += 1
    return ids, lost


def object_ids(many: int, skip: int | None = None) -> list[int]:
    """Return so many ids from 1, without the one to skip."""
    return [number for number in range(1, many + 2) if number != skip][:many]
