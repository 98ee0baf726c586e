"""Masks as polygons along the edges of their pixels, which give back the very same mask when they are drawn."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from ..sample import Instance

# Right, down, left, up: where an edge leads that has the mask at its right hand.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def rings(mask: np.ndarray) -> list[np.ndarray]:
    """Return the closed outlines of a bool mask (H, W), each int64 (K, 2): the (x, y) of its corners.

    Outer ones go clockwise as one sees it (y goes down), those of holes the other way. Pixels that touch at a corner
    alone are in outlines of their own.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    edges: list[tuple[int, int, int]] = []
    for direction, neighbour, (right, down) in (
        (0, padded[:-2, 1:-1], (0, 0)),
        (1, padded[1:-1, 2:], (1, 0)),
        (2, padded[2:, 1:-1], (1, 1)),
        (3, padded[1:-1, :-2], (0, 1)),
    ):
        rows, columns = np.nonzero(inside & ~neighbour)
        edges += ((x + right, y + down, direction) for x, y in zip(columns.tolist(), rows.tolist(), strict=True))
    left = set(edges)
    found = []
    for edge in edges:
        ring = []
        while edge in left:
            left.remove(edge)
            ring.append(edge)
            x, y, direction = edge
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
            # To the right first, which stays at the same pixel where two of them touch at a corner.
            turns = ((x, y, (direction + turn) % 4) for turn in (1, 0, -1))
            edge = next((turn for turn in turns if turn in left), ring[0])
        if ring:
            corners = np.array(ring)
            found.append(corners[corners[:, 2] != np.roll(corners[:, 2], 1), :2])
    return found


def is_hole(ring: np.ndarray) -> bool:
    """Tell whether an outline is that of a hole, by the way that it goes round."""
    x, y = ring.T
    return bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() < 0)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Return several outlines as one, with bridges of no width between the nearest corners, there and back."""
    line, *rest = parts
    for ring in rest:
        distances, places = cKDTree(line).query(ring)
        there = int(distances.argmin())
        here = int(places[there])
        around = np.concatenate([ring[there:], ring[: there + 1]])
        if distances[there] == 0:
            line = np.concatenate([line[:here], around, line[here + 1 :]])
        else:
            line = np.concatenate([line[: here + 1], around, line[here:]])
    return line


def outlines(instance: Instance, *, one: bool = False) -> list[np.ndarray]:
    """Return the polygons of an instance, each int64 (K, 2) of (x, y) in pixels of the image, which do not overlap.

    Args:
        instance: The instance.
        one: Return a single polygon. Without it there is one for each part, and a single one where there are holes.
    """
    found = [ring + instance.box[:2] for ring in rings(instance.mask)]
    if len(found) > 1 and (one or any(is_hole(ring) for ring in found)):
        return [joined(sorted(found, key=is_hole))]
    return found
