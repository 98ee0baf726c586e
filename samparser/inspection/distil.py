"""Distilling a full fine-tune: the coefficients and pairs of bases that come nearest to a change of the weights.

For two models of one architecture, `W_tuned - W_base` is read along the bases of the base weight, `M = U^T (W_tuned -
W_base) V`. As all `u_i v_j^T` are orthonormal, the best coefficients are the diagonal of M (its mean over coefficients
that move together), the best pairs are the largest entries beside it, and each explains its square of the change's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from samparser._words import shortened
from samparser.methods import merged
from samparser.methods.registry import applied_method, refuse_tuned
from samparser.sam import neck_targets
from samparser.sam.families import family_of
from samparser.tuner import SVDCoefficientConfig, SVDCoefficientLayer
from samparser.tuner.expansion import Expansion, choose_pairs, free_bases
from samparser.tuner.factors import coefficient_groups, fold, tie_change
from samparser.tuner.targets import resolve_targets

from .leftover import PartChange, changed_parts, refuse_other_architecture


@dataclass(frozen=True)
class LayerShare:
    """What a distilled adapter explains of the change of one layer.

    Args:
        layer: The layer's name.
        coefficients: How many coefficients the adapter has there.
        pairs: How many pairs of bases.
        change: Frobenius norm of `W_tuned - W_base`.
        rest: That of what the adapter leaves unexplained.
        relative: `change` over the norm of the base weight.
        by_coefficients: Share of the change that the coefficients alone explain; 0 where nothing changed.
    """

    layer: str
    coefficients: int
    pairs: int
    change: float
    rest: float
    relative: float
    by_coefficients: float

    @property
    def share(self) -> float:
        """`1 - rest^2 / change^2`; 1 where nothing changed."""
        return 1 - (self.rest / self.change) ** 2 if self.change else 1.0


@dataclass(frozen=True)
class Distilled:
    """A distilled adapter on its base model, and what it explains of the full change.

    Args:
        model: The base model with the adapter, as `get_peft_model` gives it.
        layers: The layers that were approximated.
        parts: What else differs between the two models, and whether the adapter keeps it.
    """

    model: Any
    layers: tuple[LayerShare, ...]
    parts: tuple[PartChange, ...]

    @property
    def share(self) -> float:
        """Share of the change of the approximated layers together."""
        change, rest = sum(layer.change**2 for layer in self.layers), sum(layer.rest**2 for layer in self.layers)
        return 1 - rest / change if change else 1.0

    @property
    def share_of_everything(self) -> float:
        """Share of the change of the whole model: what is explained or kept, over all that changed."""
        change, rest = sum(layer.change**2 for layer in self.layers), sum(layer.rest**2 for layer in self.layers)
        change += sum(part.change**2 for part in self.parts)
        rest += sum(part.change**2 for part in self.parts if not part.kept)
        return 1 - rest / change if change else 1.0

    def __str__(self) -> str:
        """Write a line for each layer, then what else changed."""
        width = max(12, *(len(layer.layer) for layer in self.layers))
        lines = [f"{'distilled':{width}}  change of weight  numbers  by coefficients  with pairs"]
        for row in self.layers:
            by, share = f"{100 * row.by_coefficients:.1f} %", f"{100 * row.share:.1f} %"
            numbers = row.coefficients + row.pairs
            lines.append(f"{row.layer:{width}}  {100 * row.relative:>14.3g} %  {numbers:>7}  {by:>15}  {share:>10}")
        numbers = sum(row.coefficients + row.pairs for row in self.layers)
        total = f"{100 * self.share:.1f} %"
        lines.append(f"{'all together':{width}}  {'':>16}  {numbers:>7}  {'':>15}  {total:>10}")
        lines += [str(part) for part in self.parts]
        if self.parts:
            lines.append(f"of all that changed in the model, {100 * self.share_of_everything:.1f} % are in the adapter")
        return "\n".join(lines)


@torch.no_grad()
def distil(
    base: nn.Module,
    tuned: nn.Module,
    *,
    layers: Sequence[str] = ("neck",),
    rank: int = 64,
    keep: Sequence[str] = (),
) -> Distilled:
    """Approximate what full tuning changed by coefficients and pairs of bases, the best ones in least squares.

    Coefficients of equal singular values move together and those that cannot be told from zero do not move, as in
    training; pairs are taken of other bases only.

    Args:
        base: The plain base model; it is given the adapter, in place.
        tuned: The same architecture with other weights. A model with an adapter counts as merged.
        layers: What to approximate: "neck", "attention" (the linear layers of the encoder's attention), or names as in
            `target_modules`.
        rank: Pairs for each layer, or as many as it has; 0 for coefficients alone.
        keep: Modules, such as "mask_decoder", whose tuned weights the adapter keeps in full.

    Returns:
        The adapted model, frozen and in eval mode, and the shares.

    Raises:
        TypeError: The model has no family, and `layers` asks for its neck or attention.
        ValueError: The models differ in architecture, not at all, or not in these layers; or an argument is not
            possible.
    """
    refuse_tuned(base, "distilling")
    if rank < 0:
        raise ValueError(f"rank is {rank}; it must be at least 0.")
    if isinstance(tuned, PeftModel) or applied_method(tuned) is not None:
        tuned = merged(tuned)
    refuse_other_architecture(base, tuned)
    config = SVDCoefficientConfig(
        target_modules=target_names(base, layers),
        modules_to_save=list(keep) or None,
        parametrization="absolute",
        expansion="pairs" if rank else None,
        expansion_rank=rank or None,
    )
    names = resolve_targets(config, base)
    weights = [f"{name}.weight" for name in names or ()]
    changed = changed_parts(base, tuned)
    others = changed_parts(base, tuned, without=weights, keep=keep)
    if not changed:
        raise ValueError("The two models have the same weights: there is no change to distil.")
    if sum(part.numbers for part in changed) == sum(part.numbers for part in others):
        raise ValueError(
            f"Tuning changed nothing in {shortened(names or (), 3)}; it changed "
            f"{shortened([part.part for part in changed], 5)}. Name other layers."
        )
    target = tuned.state_dict()
    model: Any = get_peft_model(base, config)
    found = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
    shares = tuple(_fill(layer, target[f"{layer.layer_name}.weight"], rank) for layer in found)
    for path, wrapper in model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            kept = tuned.get_submodule(path.removeprefix("base_model.model."))
            wrapper.modules_to_save["default"].load_state_dict(kept.state_dict())
    return Distilled(model.requires_grad_(False).eval(), shares, others)


def target_names(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Turn "neck" and "attention" into names of a model's layers; other names stay.

    Raises:
        TypeError: The model is of no family that knows its neck or attention.
        ValueError: `layers` is empty, or the encoder has no attention layers that are known.
    """
    if not layers:
        raise ValueError("layers is empty: name 'neck', 'attention', or layers as in target_modules.")
    names: list[str] = []
    for name in layers:
        if name == "neck":
            names += neck_targets(model)
        elif name == "attention":
            sites = family_of(model, "Distilling attention").attention_layers(model)
            if not sites:
                raise ValueError(
                    f"The attention layers of {type(model).__name__} are not known; name its layers instead."
                )
            names += [rows.name for site in sites for rows in (site.query, site.key, site.value, site.out)]
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def _fill(layer: SVDCoefficientLayer, tuned: Tensor, rank: int) -> LayerShare:
    """Give the adapter of a layer the best coefficients and pairs, and measure what they explain."""
    state, bases, fan = layer.states["default"], layer.bases, layer.fan_in_fan_out
    weight = layer.base_weight.double()
    change = fold(tuned.to(weight), fan_in_fan_out=fan) - fold(weight, fan_in_fan_out=fan)
    along = bases.u.double().T @ change @ bases.vh.double().T
    best = tie_change(along.diagonal()[: state.rank], state.groups)
    p = layer.svd_coefficient_p["default"]
    p.copy_(state.origin.double() + best)
    norm, alone = float(change.norm()), float(best.norm())
    pairs = 0
    if rank:
        groups = coefficient_groups(bases.p)
        free = len(free_bases(groups, bases.rank))
        pairs = min(rank, free * (free - 1))
        rows, columns, *_ = chosen = choose_pairs(change, bases, groups, pairs)
        layer.set_expansion("default", Expansion(1.0, rows, columns), torch.float32, chosen)
        layer.svd_coefficient_c["default"].copy_(along[rows, columns])
    reached = fold(layer.get_delta_weight("default").double(), fan_in_fan_out=fan)
    return LayerShare(
        layer.layer_name,
        state.rank,
        pairs,
        norm,
        float((change - reached).norm()),
        norm / float(weight.norm()),
        (alone / norm) ** 2 if norm else 0.0,
    )
