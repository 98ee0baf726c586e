"""Bilinear resizing with antialiasing as Pillow defines it, pixel by pixel in float64.

Each new pixel is a mean of old ones, weighted by a triangle around its place that is as wide as the scale, at least two
pixels. https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c (`precompute_coeffs`).
"""

import numpy as np


def weights(old: int, new: int) -> np.ndarray:
    """(new, old)."""
    scale = old / new
    width = max(scale, 1.0)
    rows = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        for j in range(old):
            rows[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / width)
        rows[i] /= rows[i].sum()
    return rows


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) to float64 (*size, C)."""
    tall, wide = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    return np.einsum("ih,jw,hwc->ijc", tall, wide, image.astype(np.float64))
