"""An image with masks to draw."""

import numpy as np


def example(seed=0, size=(30, 40), count=3):
    rng = np.random.default_rng(seed)
    truth = np.zeros((count, *size), dtype=bool)
    for mask in truth:
        y, x = rng.integers(0, size[0] - 10), rng.integers(0, size[1] - 10)
        mask[y : y + 10, x : x + 10] = True
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8), truth
