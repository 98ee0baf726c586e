"""Where mask generation puts its points: a grid on the image, and one on each of many overlapping crops of it."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

OVERLAP = 512 / 1500
"""Of neighbouring crops of the first layer, as a part of the image's shorter side; as in Segment Anything."""

Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1), half-open, in pixels of the image."""


def crop_boxes(size: tuple[int, int], layers: int) -> list[Box]:
    """Return the box of the whole image and those of its crops, layer by layer, column by column.

    Layer n has 2^n crops per side. Its crops overlap by `OVERLAP / 2^(n - 1)` of the image's shorter side. The rule of
    Segment Anything, https://github.com/facebookresearch/segment-anything (`generate_crop_boxes`); crops that it gives
    no pixel of a small image are left out.

    Args:
        size: (H, W) of the image.
        layers: How many layers of crops; 0 gives the image alone.

    >>> crop_boxes((30, 40), 1)
    [(0, 0, 40, 30), (0, 0, 25, 20), (0, 10, 25, 30), (15, 0, 40, 20), (15, 10, 40, 30)]
    """
    height, width = size
    boxes = [(0, 0, width, height)]
    for layer in range(1, layers + 1):
        number = 2**layer
        overlap = int(OVERLAP * min(size) * (2 / number))
        wide, high = (math.ceil((overlap * (number - 1) + side) / number) for side in (width, height))
        for column, row in product(range(number), repeat=2):
            x, y = column * (wide - overlap), row * (high - overlap)
            if x < width and y < height:
                boxes.append((x, y, min(x + wide, width), min(y + high, height)))
    return boxes


def point_grid(size: tuple[int, int], points_per_side: int) -> np.ndarray:
    """Return the points of a grid on an image, row by row: float64 (points_per_side^2, 2), (x, y) in its pixels.

    The image is cut into as many equal parts; a point lies in the middle of each.

    >>> point_grid((8, 4), 2).tolist()
    [[1.0, 2.0], [3.0, 2.0], [1.0, 6.0], [3.0, 6.0]]
    """
    half = 1 / (2 * points_per_side)
    places = np.linspace(half, 1 - half, points_per_side)
    x, y = np.meshgrid(places, places)
    return np.stack([x, y], axis=-1).reshape(-1, 2) * np.array([size[1], size[0]])
