"""A weight that was formed once and is used again, as long as everything it was formed from is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .functional import Term


@dataclass(frozen=True)
class KeptWeight:
    """An adapted weight in evaluation without gradient: with it, a layer costs what the plain one costs.

    Whether it still fits is decided by the values of the coefficients, not by ``p._version`` alone: code that writes to
    ``p.data``, as many implementations of moving averages do, does not change the version.
    """

    weight: Tensor
    base: tuple[int, int, torch.device, torch.dtype]
    factors: tuple[tuple[int, int, int, int], ...]
    coefficients: tuple[Tensor, ...]

    @classmethod
    def form(cls, base: Tensor, terms: list[Term], build: Callable[[list[Term]], Tensor]) -> KeptWeight:
        """Form the weight and note what it was formed from."""
        coefficients = tuple(term.s.detach().clone() for term in terms)
        return cls(build(terms), _base_key(base), _factor_key(terms), coefficients)

    @staticmethod
    def possible(base: Tensor, terms: list[Term]) -> bool:
        """Whether values can be compared here: not while compiling, tracing or transforming, nor without values."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        tensors = [base.data, *(term.s for term in terms)]
        return all(type(t) is torch.Tensor and not t.is_meta and not _is_transformed(t) for t in tensors)

    def fits(self, base: Tensor, terms: list[Term]) -> bool:
        """Whether the weight would come out the same now."""
        if self.base != _base_key(base) or self.factors != _factor_key(terms):
            return False
        if self.weight.is_inference() and not torch.is_inference_mode_enabled():
            return False
        return all(torch.equal(now.s, then) for now, then in zip(terms, self.coefficients, strict=True))


def _base_key(base: Tensor) -> tuple[int, int, torch.device, torch.dtype]:
    return base.data_ptr(), _version(base), base.device, base.dtype


def _factor_key(terms: list[Term]) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((t.u.data_ptr(), _version(t.u), t.vh.data_ptr(), _version(t.vh)) for t in terms)


def _version(tensor: Tensor) -> int:
    """The counter of in-place changes; tensors made in inference mode have none and cannot be changed outside of it."""
    return -1 if tensor.is_inference() else tensor._version


def _is_transformed(tensor: Tensor) -> bool:
    """Whether the tensor is one that torch.func works on, such as a batch inside vmap."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
