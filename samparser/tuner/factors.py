"""SVD and coefficients of a weight: the mathematics of the method as pure functions.

A weight is read as a matrix `W` of shape (out, fan_in). Its thin singular value decomposition is a sum of rank-one
matrices, and SAM-PARSER (https://arxiv.org/abs/2308.14604, section 3) trains their coefficients alone:

    W  = U diag(p0) Vh = sum_i p0_i u_i vh_i      split once; U and Vh, the bases, stay as they are
    W' = U diag(p) Vh  = sum_i p_i  u_i vh_i      p0 moves to p

W' is linear in p, so what changes is `W' - W = U diag(p - p0) Vh`. Three things follow. The kept W plus this change
is the adapted weight, and exactly W at p = p0. Changes of several adapters a add up,
`W + U diag(sum_a scaling_a (p_a - p0)) Vh`. And the layer is three factors, `W' x = U (p * (Vh x))`, with gradient
`dL/dp_i = (U^T dL/dy)_i (Vh x)_i` summed over positions: no gradient of the size of W is ever needed.

An adapter's file carries `p` and `p0` and no bases, so another machine has to find the same bases from the same
weight. Three rules make that safe (figures in docs/determinism.md):

1. The decomposition runs in float64 on the CPU, whatever the weight's dtype and device.
2. Singular values too close together to tell their vectors apart share one change, their mean; a change of a
   singular value that cannot be told from zero is dropped (`coefficient_groups`, `tie_change`).
3. Which coefficients those are is read from `p0` **as saved**, in its stored dtype, never decided anew from a
   recomputed one. Save each adapter's `p0` next to its `p` unrounded; after loading, use the saved `p0` both in
   `p - p0` and in `coefficient_groups(p0)`. Nothing else needs to be saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# A float64 decomposition turns the vectors of two singular values by about 2e-16 * s1 / gap (measured: up to ten times
# that), so a gap of 1e-9 * s1 leaves an error of at most 2e-6 of the change.
RELATIVE_GAP = 1e-9

NULL = -1
"""The group of the singular values that cannot be told from zero."""


class Factors(NamedTuple):
    """A matrix (out, fan_in) as `(u * p) @ vh`: u (out, rank), p (rank,), vh (rank, fan_in).

    What `factorize` returns has orthonormal columns in u, orthonormal rows in vh, and in p the singular values,
    falling, with rank = min(out, fan_in). A *change* of a weight is written along the same bases, or along their k
    leading ones, and then p holds differences of any sign, (k,), or (N, k) where every sample has its own.
    """

    u: Tensor
    p: Tensor
    vh: Tensor

    @property
    def rank(self) -> int:
        """The number of coefficients."""
        return len(self.vh)

    @property
    def is_meta(self) -> bool:
        """Whether these have shapes only, because the weight had no values yet."""
        return self.u.is_meta

    def to(self, device: torch.device) -> Factors:
        """Bring the three tensors to a device; their dtype stays."""
        return Factors(self.u.to(device), self.p.to(device), self.vh.to(device))

    def with_coefficients(self, p: Tensor) -> Factors:
        """Put other coefficients on the leading bases, as many as the last dimension of `p` has."""
        k = p.shape[-1]
        # Not self.rank: torch 2.6 compiles no properties of named tuples.
        return Factors(self.u, p, self.vh) if k == len(self.vh) else Factors(self.u[:, :k], p, self.vh[:k])


class Inside(NamedTuple):
    """A weight along its own bases, with terms that pair the bases of two coefficients.

    `sum_i p_i u_i vh_i + sum_k c_k u_rows[k] vh_columns[k]`, with u (out, r), vh (r, fan_in), p (r,) and rows, columns
    and c (k,), which are None where there are no pairs. Where every sample has numbers of its own, p is (N, r) and c
    (N, k). A pair costs nothing for each position of the input: it changes the left one of two small matrices.
    """

    u: Tensor
    p: Tensor
    vh: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None
    c: Tensor | None = None


def fold(weight: Tensor, *, fan_in_fan_out: bool = False) -> Float[Tensor, "out fan_in"]:
    """Read a layer's weight as a matrix (out, fan_in).

    Linear weights (out, in) are taken as they are, convolution kernels (out, in/groups, kh, kw) become
    (out, in/groups * kernel positions). With `fan_in_fan_out` the weight is stored as (in, out), as in
    `transformers.pytorch_utils.Conv1D`, and is transposed. The result shares memory with a contiguous weight.

    Raises:
        ValueError: The weight has fewer than two dimensions, or `fan_in_fan_out` is asked for with more than two.
    """
    if weight.ndim < 2:
        raise ValueError(
            f"Cannot read a weight of shape {tuple(weight.shape)} as a matrix: it needs at least two dimensions, "
            "(out, in, ...). Name the module in exclude_modules to leave it as it is."
        )
    if fan_in_fan_out:
        if weight.ndim != 2:
            raise ValueError(
                f"fan_in_fan_out=True means a weight stored as (in, out), but this one has shape "
                f"{tuple(weight.shape)}. Set fan_in_fan_out=False for convolutions."
            )
        return weight.T
    return weight.flatten(1)


def unfold(
    matrix: Float[Tensor, "out fan_in"], shape: tuple[int, ...] | torch.Size, *, fan_in_fan_out: bool = False
) -> Tensor:
    """Undo `fold`: give a matrix (out, fan_in) the shape of the layer's weight."""
    return matrix.T.reshape(shape) if fan_in_fan_out else matrix.reshape(shape)


def storage_dtype(weight: Tensor) -> torch.dtype:
    """Choose the dtype of the factors of a weight: float64 for float64, float32 for everything narrower."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def factorize(matrix: Float[Tensor, "out fan_in"]) -> Factors:
    """Split `matrix = U diag(p) Vh` by a thin SVD, the same on every machine as far as is possible.

    Computed in float64 on the CPU and rounded once to `storage_dtype`. The sign of each pair (u_i, v_i) is fixed by
    `fix_signs`. Takes no part in autograd; inside `torch.inference_mode` the factors are ordinary tensors.

    Raises:
        ValueError: The matrix is on the meta device, empty, or holds values that are not finite.

    Example:
        >>> u, p, vh = factorize(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -2.0]]))
        >>> p
        tensor([3., 2.])
        >>> recompose(u, p + torch.tensor([0.0, 0.5]), vh)
        tensor([[ 3.0000,  0.0000,  0.0000],
                [ 0.0000,  0.0000, -2.5000]])
    """
    _refuse_what_cannot_be_factored(matrix)
    dtype = storage_dtype(matrix)
    with torch.inference_mode(False), torch.no_grad():
        wide = matrix.detach().to("cpu", torch.float64)
        # LAPACK takes a third to a half of the time for a tall matrix.
        if wide.shape[0] < wide.shape[1]:
            v, p, uh = torch.linalg.svd(wide.T, full_matrices=False)
            u, vh = uh.T, v.T
        else:
            u, p, vh = torch.linalg.svd(wide, full_matrices=False)
        u, vh = fix_signs(u, vh)
        u, p, vh = (factor.to(dtype).contiguous() for factor in (u, p, vh))
        if not bool(p.isfinite().all()):
            raise ValueError(
                f"The largest singular value, of a {tuple(matrix.shape)} weight whose largest entry is "
                f"{wide.abs().max().item():.3g}, does not fit into {dtype}. Scale the weight or make it float64."
            )
        return Factors(u.to(matrix.device), p.to(matrix.device), vh.to(matrix.device))


def _refuse_what_cannot_be_factored(matrix: Tensor) -> None:
    shape = tuple(matrix.shape)
    if matrix.is_meta:
        raise ValueError(f"Cannot factor a weight of shape {shape} on the meta device: load its values first.")
    if not matrix.is_floating_point():
        raise ValueError(f"Cannot factor a {matrix.dtype} weight of shape {shape}: it has to be floating point.")
    if matrix.numel() == 0:
        raise ValueError(f"Cannot factor an empty weight of shape {shape}.")
    broken = matrix.numel() - int(matrix.detach().isfinite().sum())
    if broken:
        raise ValueError(
            f"Cannot factor a weight of shape {shape}: {broken} of its {matrix.numel()} values are NaN or infinite. "
            "Check the checkpoint it was loaded from."
        )


def fix_signs(
    u: Float[Tensor, "out rank"], vh: Float[Tensor, "rank fan_in"]
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank fan_in"]]:
    """Turn each pair (u_i, v_i) so that the largest entry of u_i is positive; their product does not change.

    Entries within one millionth of the largest count as equal to it and the first of them decides, so that the last
    bits of a decomposition do not.
    """
    magnitude = u.abs()
    leading = (magnitude >= magnitude.amax(0) * (1 - 1e-6)).int().argmax(0)
    sign = torch.where(u.gather(0, leading[None])[0] < 0, -1.0, 1.0).to(u.dtype)
    return u * sign, sign[:, None] * vh


def recompose(
    u: Float[Tensor, "out rank"], p: Float[Tensor, " rank"], vh: Float[Tensor, "rank fan_in"]
) -> Float[Tensor, "out fan_in"]:
    """Form the matrix `U diag(p) Vh` in one product."""
    return (u * p) @ vh


def weight_change(
    u: Float[Tensor, "out rank"], delta: Float[Tensor, " rank"], vh: Float[Tensor, "rank fan_in"]
) -> Float[Tensor, "out fan_in"]:
    """Form the change `U diag(delta) Vh` of a weight in float32 or wider, under autocast too.

    A `delta` of zeros gives exactly zero.
    """
    dtype = torch.promote_types(torch.promote_types(u.dtype, delta.dtype), torch.float32)
    # Autocast knows no meta device; there it has nothing to round either.
    with torch.autocast(device_type="cpu" if u.is_meta else u.device.type, enabled=False):
        return (u.to(dtype) * delta.to(dtype)) @ vh.to(dtype)


def coefficient_groups(p0: Float[Tensor, " rank"], leading: int | None = None) -> Int[Tensor, " leading"] | None:
    """Find which coefficients have to move together because their bases cannot be told apart; None when none have to.

    Two neighbours in the order of size belong together when they differ by no more than
    `max(2 eps(dtype) * larger, 1e-9 * largest)`: the first is what p0 resolves in its dtype (equal singular values
    rounded on two machines differ by at most half of it), the second what a float64 decomposition resolves. Groups are
    chains of such neighbours. The chain that reaches zero, counting zero as one more neighbour, is the `NULL` group.

    A pure function of `p0`, so give it the `p0` saved with the adapter, in the dtype in which it was saved: then
    every machine forms the same groups.

    Args:
        p0: All singular values of the weight.
        leading: How many of them, from the first on, the adapter changes; None for all. A group of which these are only
            a part joins the null group: the directions in a part of a group are arbitrary.

    Returns:
        For each coefficient that is changed the index of the first member of its group, or -1 in the null group; on
        p0's device.

    Raises:
        ValueError: A coefficient is negative or not finite: these are not singular values.
    """
    values = p0.detach().cpu()
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(
            f"p0 holds {int((~(values >= 0) | values.isinf()).sum())} values of {len(values)} that are negative or not "
            "finite; the singular values of a weight are neither. Is this the p0 saved with the adapter?"
        )
    falling, order = values.sort(descending=True, stable=True)
    falling = falling.double()
    # Below the smallest value stands zero: what is not apart from it joins the null group.
    below = torch.cat([falling[1:], falling.new_zeros(1)])
    close = torch.maximum(2 * torch.finfo(p0.dtype).eps * falling, RELATIVE_GAP * falling[0])
    apart = falling - below > close
    if bool(apart.all()):
        return None
    count = len(values) if leading is None else leading
    # Group number: how many gaps lie above; the leader is the smallest index in it.
    number = torch.cat([apart.new_zeros(1), apart[:-1]]).cumsum(0)
    leader = torch.full_like(number, len(values)).scatter_reduce(0, number, order, "amin")[number]
    if not bool(apart[-1]):
        leader = torch.where(number == number[-1], NULL, leader)
    groups = torch.empty_like(leader).scatter(0, order, leader)
    kept = groups[:count]
    kept = torch.where(torch.isin(kept, groups[count:]), NULL, kept)
    return None if torch.equal(kept, torch.arange(count)) else kept.to(p0.device)


def tie_change(delta: Float[Tensor, " rank"], groups: Int[Tensor, " rank"] | None) -> Float[Tensor, " rank"]:
    """Give the coefficients of a group the mean of their changes and the null group none.

    `groups` is what `coefficient_groups` returned; with None, `delta` itself comes back. Differentiable; changes
    that already agree are kept bit for bit, so tying twice is tying once.
    """
    if groups is None:
        return delta
    leader = groups.clamp(min=0)
    first = delta[leader]
    spread = torch.zeros_like(delta).index_add(0, leader, torch.where(groups == NULL, 0, delta - first))
    size = torch.zeros_like(delta).index_add(0, leader, (groups != NULL).to(delta.dtype))
    mean = first + spread[leader] / size[leader].clamp(min=1)
    return torch.where(groups == NULL, 0, mean)


def free_coefficients(groups: Int[Tensor, " rank"] | None, rank: int) -> int:
    """Count how many of `rank` coefficients can be trained independently: one in each group, none in the null group.

    Nearly always all of them. An orthogonal weight, as some layers have before any training, has a single one.
    """
    return rank if groups is None else len(set(groups.tolist()) - {NULL})
