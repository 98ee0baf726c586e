"""Expansion of the bases: further rank-one terms of a weight's change, their choice, and the signal that they see.

Coefficients move along `u_i v_i^T` alone. An expansion adds terms along other frozen directions,

    W' = W + U diag(p - p0) Vh + sum_k c_k s a_k b_k^T

with c from 0. As the directions are frozen, the change stays linear in its numbers: adapters add up, scale and merge as
before. What a term gains first is `dL/dc_k = s a_k^T G b_k` with the mean gradient `G = dL/dW` of the training data, so
directions are chosen by G:

- **pairs** `u_i v_j^T` of the weight's own bases, i and j different, those of the largest `|u_i^T G v_j|`. Two whole
  numbers say which; nothing else is stored. Bases that another factorisation may turn, those of equal singular values
  and of zero, are never taken.
- **gradient**: the leading singular pairs of G, after what the trained coefficients see of it is taken out.
- **random**: unit vectors, as a control.

The functions here are pure functions of tensors: a gradient is read as a matrix (out, fan_in), as the weight is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from samparser._untrusted import shown

from .factors import NULL, Factors, factorize, tie_change

Kind = Literal["pairs", "gradient", "random"]
DEFAULT_COUNT = {"pairs": 64, "gradient": 4, "random": 4}
"""So many terms each layer gets where `expansion_rank` says nothing, or as many as it allows if those are fewer."""

MOST_TERMS = 2**20


@dataclass(frozen=True)
class Wanted:
    """What an adapter asks for in one layer: terms of a kind, how many (None: the default), and the dtype to store."""

    kind: Kind
    count: int | None
    dtype: torch.dtype


@dataclass(frozen=True)
class Expansion:
    """The terms of an adapter in one layer, without their coefficients c and the vectors that are stored.

    First come the pairs, `scale * u_rows[k] vh_columns[k]`, rows and columns (m,), then `stored` terms with vectors
    of their own. `share` is what `initialize_expansion` found on the held-out batches; None where nobody measured.
    """

    scale: float
    rows: Tensor
    columns: Tensor
    stored: int = 0
    share: dict[str, float | None] | None = None

    @property
    def count(self) -> int:
        """The number of terms."""
        return len(self.rows) + self.stored

    def to(self, device: torch.device) -> Expansion:
        """Bring the indices to a device."""
        return replace(self, rows=self.rows.to(device), columns=self.columns.to(device))

    def record(self) -> dict[str, Any]:
        """Write the terms for adapter_config.json; pairs as "row,column row,column"."""
        pairs = " ".join(f"{row},{column}" for row, column in zip(*self._indices(), strict=True))
        record: dict[str, Any] = {"scale": self.scale, "pairs": pairs, "stored": self.stored}
        return record if self.share is None else {**record, "share": self.share}

    def _indices(self) -> tuple[list[int], list[int]]:
        return self.rows.tolist(), self.columns.tolist()

    @classmethod
    def from_record(cls, layer: str, record: dict[str, Any], rank: int | None = None) -> Expansion:
        """Undo `record`.

        Args:
            layer: The layer's name, for messages.
            record: What `record` gave.
            rank: The number of bases that the layer has, if known.

        Raises:
            ValueError: `record` is none, or pairs bases that the layer does not have.
        """
        where = f"{layer}: the adapter's expansion_record"
        scale, pairs, stored = (record.get(name) for name in ("scale", "pairs", "stored"))
        if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < abs(scale) < 1e300:
            raise ValueError(f"{where} has scale={shown(scale)}, which is no finite number other than zero.")
        if not isinstance(stored, int) or isinstance(stored, bool) or not 0 <= stored <= MOST_TERMS:
            raise ValueError(f"{where} has stored={shown(stored)}, which is no number of terms.")
        try:
            indices = [[int(number) for number in pair.split(",")] for pair in str(pairs).split()]
            rows, columns = torch.tensor(indices, dtype=torch.int64).reshape(-1, 2).T if indices else _NONE
            fits = isinstance(pairs, str) and all(len(pair) == 2 and min(pair) >= 0 for pair in indices)
        except (ValueError, RuntimeError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"{where} has pairs={shown(pairs)}, which is not written as '12,40 3,7'.")
        largest = int(torch.cat([rows, columns]).max()) if len(rows) else -1
        if rank is not None and largest >= rank:
            raise ValueError(
                f"{where} pairs base {largest}, but the layer has {rank} bases, counted from 0. The terms are those of "
                "another model; load the base model that the adapter was trained on."
            )
        share = record.get("share")
        return cls(float(scale), rows.clone(), columns.clone(), stored, share if isinstance(share, dict) else None)


_NONE = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


class Chosen(NamedTuple):
    """Directions that were chosen: pairs by rows and columns (m,), or vectors a (out, k) and b (k, fan_in)."""

    rows: Tensor
    columns: Tensor
    a: Tensor | None = None
    b: Tensor | None = None

    def factors(self, bases: Factors) -> tuple[Tensor, Tensor]:
        """All directions as vectors, (out, n) and (n, fan_in), in float32 or wider."""
        left, right = bases.u[:, self.rows], bases.vh[self.columns]
        if self.a is None or self.b is None:
            return left, right
        return torch.cat([left, self.a.to(left.dtype)], 1), torch.cat([right, self.b.to(right.dtype)])


# The choice


def choose(
    wanted: Wanted,
    gradient: Tensor,
    bases: Factors,
    groups: Tensor | None,
    trained: Tensor | None,
    *,
    taken: Expansion | None = None,
    seed: int = 0,
) -> Chosen:
    """Choose the directions of a layer's terms by its mean gradient.

    Args:
        wanted: The kind, and how many.
        gradient: (out, fan_in).
        bases: The factors of the layer's weight.
        groups: `coefficient_groups` of all of its singular values.
        trained: The groups (k,) of the k leading coefficients that the adapter trains; None where it trains none.
        taken: Terms that there are already; their pairs are not chosen again.
        seed: Draws random directions.

    Raises:
        ValueError: The gradient is zero or not finite, or the layer does not allow so many terms.
    """
    broken = int((~gradient.isfinite()).sum())
    if broken:
        raise ValueError(f"{broken} of the {gradient.numel()} values of its mean gradient are NaN or infinite.")
    if not bool(gradient.any()):
        raise ValueError("its mean gradient is zero everywhere: the loss does not depend on it.")
    if wanted.kind == "pairs":
        return choose_pairs(gradient, bases, groups, wanted.count, taken=taken)
    out, fan_in = gradient.shape
    count = _allowed(wanted.count, min(out, fan_in), wanted.kind)
    if wanted.kind == "random":
        a, b = random_directions(out, fan_in, count, seed)
    else:
        a, b = choose_directions(gradient, bases, trained, count, exact=wanted.count is not None)
    rows, columns = (index.to(gradient.device) for index in _NONE)
    return Chosen(rows, columns, a.to(gradient.device, wanted.dtype), b.to(gradient.device, wanted.dtype))


def most_terms(kind: Kind, rank: int) -> int:
    """Give how many terms of a kind a layer of that many bases allows, if no singular value is tied to another or zero.

    >>> most_terms("pairs", 3), most_terms("gradient", 3)
    (6, 3)
    """
    return rank * (rank - 1) if kind == "pairs" else rank


def _allowed(count: int | None, most: int, kind: Kind) -> int:
    if count is None:
        return min(DEFAULT_COUNT[kind], most)
    if count > most:
        raise ValueError(f"expansion_rank is {count}, but it allows {most} terms of the kind {kind!r} at most.")
    return count


def free_bases(groups: Tensor | None, rank: int) -> Tensor:
    """Find the indices of the bases that every factorisation gives, those of single singular values above zero."""
    if groups is None:
        return torch.arange(rank)
    groups = groups.cpu()
    members = torch.bincount(groups.clamp(min=0), weights=(groups != NULL).double(), minlength=rank)
    return torch.arange(rank)[(groups != NULL) & (members[groups.clamp(min=0)] == 1)]


def choose_pairs(
    gradient: Tensor, bases: Factors, groups: Tensor | None, count: int | None, *, taken: Expansion | None = None
) -> Chosen:
    """Choose the `count` pairs (i, j), i != j, of the largest `|u_i^T G v_j|`, the largest first.

    Args:
        gradient: G, (out, fan_in).
        bases: The factors of the weight.
        groups: `coefficient_groups` of all singular values; bases of groups and of the null group are not taken.
        count: How many; None for the default, or for all if those are fewer.
        taken: Terms whose pairs are not chosen again.

    Raises:
        ValueError: There are fewer pairs.

    Example:
        >>> from samparser.tuner.factors import factorize
        >>> bases = factorize(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
        >>> gradient = torch.tensor([[9.0, 0.1, -0.5], [0.0, 9.0, 0.2], [0.4, 0.0, 9.0]])
        >>> rows, columns, *_ = choose_pairs(gradient, bases, None, 2)
        >>> rows.tolist(), columns.tolist()
        ([0, 2], [2, 0])
    """
    size = torch.full((bases.rank, bases.rank), -1.0, dtype=torch.float64)
    free = free_bases(groups, bases.rank)
    seen = along(gradient, bases.u, bases.vh).abs().to("cpu", torch.float64)
    size[free[:, None], free] = seen[free[:, None], free]
    size.fill_diagonal_(-1.0)
    if taken is not None:
        size[taken.rows.cpu(), taken.columns.cpu()] = -1.0
    count = _allowed(count, int((size >= 0).sum()), "pairs")
    order = size.flatten().argsort(descending=True, stable=True)[:count].to(gradient.device)
    return Chosen(order // bases.rank, order % bases.rank)


def choose_directions(
    gradient: Tensor, bases: Factors, trained: Tensor | None, count: int, *, exact: bool = True
) -> tuple[Tensor, Tensor]:
    """Choose the leading singular pairs of what the trained coefficients do not see of a gradient.

    Args:
        gradient: G, (out, fan_in).
        bases: The factors of the weight.
        trained: The groups (k,) of the coefficients that are trained, k leading ones; None where none are.
        count: How many.
        exact: Whether fewer are an error, where the gradient has no more.

    Returns:
        a (out, count) and b (count, fan_in), orthonormal columns and rows.

    Raises:
        ValueError: The gradient has fewer directions.
    """
    rest = gradient.to(bases.u.dtype)
    if trained is not None:
        k = len(trained)
        rest = rest - (bases.u[:, :k] * _diagonal(rest, bases, trained)) @ bases.vh[:k]
    u, p, vh = factorize(rest)
    there = int((p > 1e-6 * gradient.abs().max().item()).sum())
    if there < count and (exact or not there):
        raise ValueError(
            f"expansion_rank is {count}, but its mean gradient has {there} directions beside what is trained."
        )
    count = min(count, there)
    return u[:, :count].to(gradient.device), vh[:count].to(gradient.device)


def random_directions(out: int, fan_in: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw unit vectors a (out, count) and b (count, fan_in), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(out, count, generator=generator), torch.randn(count, fan_in, generator=generator)
    return a / a.norm(dim=0), b / b.norm(dim=1, keepdim=True)


# The share of the signal


def along(gradient: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """Read a gradient along two bases: `u^T G v`, one number for each pair of directions."""
    return u.T @ gradient.to(u.dtype) @ vh.T


def _diagonal(gradient: Tensor, bases: Factors, trained: Tensor) -> Tensor:
    """What the trained coefficients see: `u_i^T G v_i` (k,), the mean of it in a group."""
    k = len(trained)
    diagonal = ((bases.u[:, :k].T @ gradient.to(bases.u.dtype)) * bases.vh[:k]).sum(1)
    return tie_change(diagonal, trained)


class Sight:
    """What an adapter's numbers see of a gradient: its part in the space that they span.

    The share of the signal is `<P A, P B> / <A, B>` with the mean gradients A and B of two halves of the data, P the
    projection onto that space, so that the noise of the halves cancels. As `read` is linear, the mean of what is
    read of single batches is what is read of their mean.
    """

    def __init__(self, bases: Factors, trained: Tensor | None, directions: tuple[Tensor, Tensor]) -> None:
        self.bases, self.trained = bases, trained
        self.a, self.b = directions
        gram = (self.a.T @ self.a) * (self.b @ self.b.T)
        if trained is not None:
            # Of the directions only what the coefficients do not see counts as theirs.
            k = len(trained)
            lengths = (self.a.T @ bases.u[:, :k]) * (self.b @ bases.vh[:k].T)
            self.overlap = torch.stack([tie_change(length, trained) for length in lengths]) if len(lengths) else lengths
            gram = gram - self.overlap @ self.overlap.T
        self.inverse = torch.linalg.pinv(gram.double().cpu(), rtol=1e-9, hermitian=True)

    def read(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Read a gradient along the coefficients, (k,), and along what the directions add, (n,); in float64."""
        beyond = ((self.a.T @ gradient.to(self.a.dtype)) * self.b).sum(1)
        if self.trained is None:
            return beyond.new_zeros(0).double().cpu(), beyond.double().cpu()
        diagonal = _diagonal(gradient, self.bases, self.trained)
        return diagonal.double().cpu(), (beyond - self.overlap @ diagonal).double().cpu()

    def products(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Give `<P A, P B>` for the coefficients alone and for all numbers, from what was read of A and of B."""
        coefficients = float(first[0] @ second[0])
        return coefficients, coefficients + float(first[1] @ self.inverse @ second[1])


def share_of(seen: float, signal: float) -> float | None:
    """Give the share of a signal, None where the two halves agree on none, so that there is nothing to share."""
    return seen / signal if signal > 0 and math.isfinite(seen) else None
