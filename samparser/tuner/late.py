"""When a layer's base weight gets its values, or other ones, after the layer was adapted.

A model may be made on the meta device and filled later, and ``load_state_dict`` may bring other base weights than those
the bases were computed from. Then the bases follow the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .base_record import as_factored, make_record, match_base, report
from .bases import bases_of
from .factors import coefficient_groups
from .fingerprint import value_hash

if TYPE_CHECKING:
    from .layer import SVDCoefficientLayer


@torch.no_grad()
def give_values(layer: SVDCoefficientLayer) -> None:
    """Compute the bases of a layer whose weight was on the meta device and now has values.

    Raises:
        ValueError: An adapter of the layer was trained on other base weights, or its coefficients have no values.
    """
    for kind, adapter, parameter in layer.parameters_of_adapters():
        if parameter.is_meta:
            raise ValueError(
                f"{layer.layer_name}: the base weight has values, but {kind} of adapter {adapter!r} is still on the "
                "meta device. Load the adapter too, or make it after the base model has its values."
            )
    weight, bases = layer.unmerged_weight, None
    for state in layer.states.values():
        saved = state.record if state.check_later else None
        match = match_base(layer.layer_name, weight, saved, fan_in_fan_out=layer.fan_in_fan_out, present=bases)
        exact = "svd_coefficient_u" in state.trained
        report([match], base_check=state.base_check, exact_anyway=exact)
        bases, rank = match.bases, state.rank
        state.origin, state.record, state.check_later = match.origin[:rank], match.record, False
        state.groups = None if exact else coefficient_groups(match.group_p0, rank)
    layer.bases = bases or bases_of(layer.layer_name, weight, fan_in_fan_out=layer.fan_in_fan_out)


@torch.no_grad()
def after_loading(layer: SVDCoefficientLayer, incompatible_keys: Any) -> None:
    """Hook after ``load_state_dict``: compute the bases anew where the base weight now has other values.

    Coefficients that were loaded along count from the new p0. Those that were not keep their change; where that is
    none, as for an adapter that was not trained, they start at the new p0.
    """
    weight = layer.unmerged_weight
    records = [state.record for state in layer.states.values() if state.record is not None]
    if weight.is_meta or layer.bases.is_meta or layer.merged_adapters or not records:
        return
    if value_hash(as_factored(weight, layer.bases)).startswith(records[0]["sha256"]):
        return
    old = layer.bases
    new = bases_of(layer.layer_name, weight, fan_in_fan_out=layer.fan_in_fan_out, factored_as=old.factored_as)
    layer.bases = new
    for adapter, state in layer.states.items():
        rank = state.rank
        key = f"{layer.layer_name}.svd_coefficient_p.{adapter}"
        loaded = not any(missing.endswith(key) for missing in incompatible_keys.missing_keys)
        if adapter in layer.svd_coefficient_p and not loaded:
            p = layer.svd_coefficient_p[adapter]
            if torch.equal(p, state.origin.to(p.dtype)):
                p.copy_(new.p0[:rank])
                loaded = True
        if loaded or adapter in layer.svd_coefficient_d:
            state.origin = new.p0[:rank]
        state.groups = None if adapter in layer.svd_coefficient_u else coefficient_groups(new.p0, rank)
        state.record = make_record(as_factored(weight, new), new.p0, None if loaded else state.origin)
