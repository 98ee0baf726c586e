"""The choice of an expansion's directions and the signal they see, by loops and by the whole space of directions."""

import itertools

import torch
from torch import Tensor


def best_pairs(gradient: Tensor, u: Tensor, vh: Tensor, count: int, allowed: set[int]) -> set[tuple[int, int]]:
    """The pairs (i, j) of the largest `|u_i^T G v_j|`, found by looking at every one."""
    sizes = {
        (i, j): abs(float(u[:, i].double() @ gradient.double() @ vh[j].double()))
        for i, j in itertools.product(sorted(allowed), repeat=2)
        if i != j
    }
    return set(sorted(sizes, key=sizes.get, reverse=True)[:count])


def projection_share(first: Tensor, second: Tensor, directions: list[Tensor]) -> float:
    """`<P A, P B> / <A, B>` with P the projection onto the span of matrices, each written out as a long vector."""
    a, b = first.double().flatten(), second.double().flatten()
    basis = torch.stack([direction.double().flatten() for direction in directions], 1)
    onto = basis @ torch.linalg.pinv(basis)
    return float((onto @ a) @ (onto @ b) / (a @ b))
