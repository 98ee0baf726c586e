"""Adapted weight kept between forward passes in evaluation, and whether a layer's bases still make up its weight.

Both are found once and hold for as long as nothing that they were found from has changed, which `_state` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samparser._hashing import version_of

from .bases import is_plain
from .factors import Factors, recompose, unfold

State = tuple[int, int, torch.device, torch.dtype]


def _state(tensor: Tensor) -> State | None:
    """What changes when a tensor gets other values in one of the usual ways; None where that cannot be told."""
    if not is_plain(tensor):
        return None
    return tensor.data_ptr(), version_of(tensor), tensor.device, tensor.dtype


@dataclass(frozen=True)
class KeptWeight:
    """An adapted weight in evaluation without gradient: with it, a layer costs what the plain one costs.

    Whether it still fits is decided by the values of the coefficients, not by torch's count of changes alone: code that
    writes to `p.data`, as many implementations of moving averages do, does not raise it.
    """

    weight: Tensor
    states: list[State | None]
    changes: list[Tensor]

    @classmethod
    def form(cls, base: Tensor, terms: list[Factors], build: Callable[[list[Factors]], Tensor]) -> KeptWeight:
        """Form the weight and note what it was formed from."""
        return cls(build(terms), _states(base, terms), [term.p.detach().clone() for term in terms])

    @staticmethod
    def possible(base: Tensor, terms: list[Factors]) -> bool:
        """Tell whether values can be compared: not while compiling, tracing or transforming, nor without values."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        return all(_state(tensor) is not None for tensor in (base, *(tensor for term in terms for tensor in term)))

    def fits(self, base: Tensor, terms: list[Factors]) -> bool:
        """Tell whether the weight would come out the same now."""
        if self.states != _states(base, terms) or (
            self.weight.is_inference() and not torch.is_inference_mode_enabled()
        ):
            return False
        return all(torch.equal(now.p, then) for now, then in zip(terms, self.changes, strict=True))


def _states(base: Tensor, terms: list[Factors]) -> list[State | None]:
    return [_state(tensor) for tensor in (base, *(basis for term in terms for basis in (term.u, term.vh)))]


@dataclass
class BasesFit:
    """Whether `W = U diag(p0) Vh` holds for a layer, so that the factors can stand for the weight.

    `fits` is what was found last, and stands while compiling or tracing; found anew when the weight or the bases are
    others.
    """

    fits: bool
    _found_for: tuple[State, Factors] | None = None

    @torch.no_grad()
    def holds(self, weight: Tensor, bases: Factors, *, fan_in_fan_out: bool) -> bool:
        """Tell whether the factors are the weight up to the rounding of their own dtype.

        A weight that is trained itself, has no values or is one that torch.func works on counts as one that they are
        not.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.fits
        state = _state(weight)
        if state is None or weight.requires_grad or bases.is_meta:
            return False
        if self._found_for is None or self._found_for[0] != state or self._found_for[1] is not bases:
            # In float64, which neither autocast nor TF32 rounds; Apple's GPUs have none.
            wide = torch.float32 if weight.device.type == "mps" else torch.float64
            matrix = recompose(*(tensor.to(wide) for tensor in bases))
            error = (unfold(matrix, weight.shape, fan_in_fan_out=fan_in_fan_out) - weight).abs().max()
            self.fits = bool(error <= 64 * torch.finfo(bases.u.dtype).eps * bases.p.max())
            self._found_for = state, bases
        return self.fits
