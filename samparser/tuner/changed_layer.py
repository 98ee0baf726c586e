"""Changed layer: the change of a layer's weight that its adapters make, written as a sum of rank-one terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .adapter_layer import AdapterLayer
from .factors import Factors, Inside, tie_change


class WeightChange(NamedTuple):
    """The change of a layer's weight, by where the directions of its terms come from.

    `leading` (k,), or (N, k) where every sample has numbers of its own, goes along the leading bases of the layer; it
    is None where no adapter changes coefficients. `pairs` pair these bases, as `places`, rows and columns, say.
    `beside` are along other directions.
    """

    leading: Tensor | None
    pairs: list[Factors]
    places: list[tuple[Tensor, Tensor]]
    beside: list[Factors]

    def terms(self, bases: Factors) -> list[Factors]:
        """Write the whole change as a sum; an empty list for none."""
        shared = [] if self.leading is None else [bases.with_coefficients(self.leading)]
        return [*self.beside, *self.pairs, *shared]

    def inside(self, bases: Factors) -> Inside:
        """Write the changed weight along the layer's bases, without the terms beside them."""
        p = bases.p if self.leading is None else bases.p + _pad(self.leading, len(bases.p))
        if not self.pairs:
            return Inside(bases.u, p, bases.vh)
        rows, columns = (torch.cat(indices) for indices in zip(*self.places, strict=True))
        return Inside(bases.u, p, bases.vh, rows, columns, torch.cat([pair.p for pair in self.pairs], -1))


class ChangedLayer(AdapterLayer):
    """The adapters of one layer and the change of the weight that they make together."""

    def spectrum(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Give (p0, p) of an adapter, each (k,): its coefficients at the start and now, before scaling."""
        origin = self.states[adapter_name].origin
        return origin, origin + self.coefficient_change(adapter_name)

    def coefficient_change(self, adapter_name: str) -> Tensor:
        """Compute p - p0 of an adapter, (k,), in float32 or wider."""
        state = self.states[adapter_name]
        if adapter_name in self.svd_coefficient_d:
            d = self.svd_coefficient_d[adapter_name]
            change = state.origin * d if state.relative else d.to(torch.promote_types(d.dtype, state.origin.dtype))
        elif adapter_name in self.svd_coefficient_p:
            p = self.svd_coefficient_p[adapter_name]
            change = p.to(torch.promote_types(p.dtype, state.origin.dtype)) - state.origin
        else:  # The coefficients of this adapter do not train.
            return torch.zeros_like(state.origin)
        return tie_change(change, state.groups)

    def change_by(self, adapter_names: Sequence[str]) -> WeightChange:
        """Find the change of the weight by these adapters together."""
        shared: list[Tensor] = []
        change = WeightChange(None, [], [], [])
        for name in self.present(adapter_names):
            self._add_terms(change, name, self.scaling[name])
            if (moved := self._moved(name)) is not None and name not in self.svd_coefficient_u:
                shared.append(moved * self.scaling[name])
        if not shared:
            return change
        rank = max(map(len, shared))
        padded = [_pad(moved, rank) for moved in shared]
        return change._replace(leading=sum(padded[1:], padded[0]))

    def terms_of(self, adapter_names: Sequence[str]) -> list[Factors]:
        """Write the change of the weight by these adapters together as a sum; an empty list for none."""
        return self.change_by(adapter_names).terms(self.bases)

    def change_by_sample(self, adapter_names: Sequence[str]) -> WeightChange | None:
        """Find the change for a batch whose sample n has the adapter adapter_names[n], with numbers for each sample.

        None when an adapter has bases of its own: then the same terms cannot serve all samples.
        """
        present = self.present(adapter_names)
        if any(name in self.svd_coefficient_u for name in present):
            return None
        change = WeightChange(None, [], [], [])
        for name in present:
            self._add_terms(change, name, self.scaling[name], partial(_rows_of, name=name, adapter_names=adapter_names))
        found = {name: self._moved(name) for name in present}
        moved = {name: one * self.scaling[name] for name, one in found.items() if one is not None}
        if not moved:
            return change
        rank = max(len(one) for one in moved.values())
        none = next(iter(moved.values())).new_zeros(rank)
        rows = [_pad(moved.get(name, none), rank) for name in adapter_names]
        return change._replace(leading=torch.stack(rows))

    def _moved(self, name: str) -> Tensor | None:
        """The change of an adapter's coefficients, None where it trains none."""
        trains = name in self.svd_coefficient_p or name in self.svd_coefficient_d
        return self.coefficient_change(name) if trains else None

    def _add_terms(
        self, change: WeightChange, name: str, scale: float, spread: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Add what an adapter changes otherwise than along the layer's own bases, term by term."""
        state = self.states[name]
        if name in self.svd_coefficient_u:
            u, vh = self.svd_coefficient_u[name], self.svd_coefficient_vh[name]
            moved = self.coefficient_change(name)
            if "svd_coefficient_u" in state.trained:
                # U' diag(p) Vh' - U diag(p0) Vh: the bases of the adapter are no longer those of the weight.
                change.beside.append(Factors(u, (state.origin + moved) * scale, vh))
                change.beside.append(self.bases.with_coefficients(-state.origin * scale))
            else:
                change.beside.append(Factors(u, moved * scale, vh))
        if name in self.svd_coefficient_c:
            self._add_expansion(change, name, scale, spread)

    def _add_expansion(
        self, change: WeightChange, name: str, scale: float, spread: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        expansion = self.states[name].expansion
        assert expansion is not None
        c = self.svd_coefficient_c[name]
        c = c.to(torch.promote_types(c.dtype, self.bases.p.dtype)) * (expansion.scale * scale)
        c, pairs = c if spread is None else spread(c), len(expansion.rows)
        if pairs:
            u, vh = self._paired(name)
            change.pairs.append(Factors(u, c[..., :pairs], vh))
            change.places.append((expansion.rows, expansion.columns))
        if expansion.stored:
            change.beside.append(Factors(self.svd_coefficient_a[name], c[..., pairs:], self.svd_coefficient_b[name]))

    def terms_of_expansion(self, adapter_name: str) -> Factors:
        """Write the terms of an adapter's expansion, which it has, as one sum of n, before scaling."""
        change = WeightChange(None, [], [], [])
        self._add_expansion(change, adapter_name, 1.0)
        terms = [*change.pairs, *change.beside]
        return Factors(
            torch.cat([term.u.to(self.bases.u.dtype) for term in terms], 1),
            torch.cat([term.p for term in terms]),
            torch.cat([term.vh.to(self.bases.vh.dtype) for term in terms]),
        )

    def _paired(self, name: str) -> tuple[Tensor, Tensor]:
        """The bases of an adapter's pairs; kept, so that an adapted weight formed with them is known to fit."""
        expansion = self.states[name].expansion
        assert expansion is not None
        kept = self._pair_bases.get(name)
        if kept is not None and kept[0] is self.bases.u and kept[1] is expansion.rows:
            return kept[2], kept[3]
        with torch.inference_mode(False), torch.no_grad():
            found = self.bases.u[:, expansion.rows], self.bases.vh[expansion.columns]
        if not torch.compiler.is_compiling():
            self._pair_bases[name] = (self.bases.u, expansion.rows, *found)
        return found

    def trains_bases(self) -> bool:
        """Tell whether an active adapter has bases of its own that train."""
        return any("svd_coefficient_u" in self.states[name].trained for name in self.present(self.active_adapters))


def no_terms_yet(layer: str, adapter: str) -> str:
    """Say that an adapter has to get the terms of its expansion first."""
    return (
        f"{layer}: adapter {adapter!r} has an expansion whose directions have not been chosen. Call "
        "samparser.initialize_expansion(model, batches, loss) after get_peft_model and before training or saving; "
        "it chooses them by the gradient of your data."
    )


def _rows_of(c: Tensor, name: str, adapter_names: Sequence[str]) -> Tensor:
    """The coefficients of an adapter's terms for each sample, (N, n): zero where a sample has another adapter."""
    return torch.stack([c if adapter == name else torch.zeros_like(c) for adapter in adapter_names])


def _pad(change: Tensor, rank: int) -> Tensor:
    return F.pad(change, (0, rank - change.shape[-1])) if change.shape[-1] < rank else change
