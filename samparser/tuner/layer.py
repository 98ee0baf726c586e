"""Adapted layers: forward, merge, unmerge of the linear layers and convolutions that take the place of plain ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from . import factored, functional
from .base_record import Match
from .bases import WeightSample
from .changed_layer import ChangedLayer, WeightChange, no_terms_yet
from .config import Form
from .factors import Factors, Inside
from .targets import without_values
from .weight_cache import BasesFit, KeptWeight

BASE = "__base__"
"""In a mixed batch, the adapter name that stands for the base model."""


class SVDCoefficientLayer(ChangedLayer):
    """A layer whose weight is changed through its coefficients by any number of adapters.

    The base layer keeps its weight, so that disabling and unmerging give it back bit for bit; a change of zero is
    exactly none. The mathematics is in `samparser.tuner.factors`.
    """

    def __init__(self, base_layer: nn.Module, name: str, match: Match, *, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer, name, match, fan_in_fan_out=fan_in_fan_out)
        self._bases_fit = BasesFit(match.rounded_to is None and not match.bases.is_meta)
        self.takes_projection = False
        self.gradient_probe: Tensor | None = None

    # The weight

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, for code that reads it instead of calling the layer.

        `nn.MultiheadAttention` and the fast path of `nn.TransformerEncoderLayer` do. Differentiable. While
        `gradient_probe` is set, zeros of the weight's shape, it is added, and its gradient is the weight's.
        """
        if self._disable_adapters:
            weight = self.unmerged_weight
        elif self.merged_adapters:
            weight = self.base_weight
        else:
            weight = self._weight_with(self.terms_of(self.active_adapters))
        return weight if self.gradient_probe is None else (weight + self.gradient_probe).to(weight.dtype)

    def _weight_with(self, terms: list[Factors]) -> Tensor:
        if not terms:
            return self.base_weight
        return functional.rebuilt_weight(self.base_weight, terms, fan_in_fan_out=self.fan_in_fan_out)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Form the change of the weight by one adapter, in the shape of the weight and in float32 or wider."""
        terms = self.terms_of([adapter_name])
        if not terms:
            return torch.zeros_like(self.base_weight, dtype=self.bases.u.dtype)
        return functional.change_of(terms, self.base_weight.shape, fan_in_fan_out=self.fan_in_fan_out)

    # Forward

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """Compute the base layer's output with the weight changed by the active adapters, or by one for each sample.

        The first state that holds decides:

        | state of the layer                   | computes                                            |
        |--------------------------------------|-----------------------------------------------------|
        | has a gradient probe                 | with the adapted weight and the probe               |
        | takes a projection                   | on from z, with whatever is active, merged or named |
        | disabled, something merged           | with the kept copy of the weight                    |
        | disabled                             | the base layer                                      |
        | adapter names given                  | each sample with its own change                     |
        | something merged, or no change       | the base layer, whose weight holds what is merged   |
        | training, or a graph is built        | factored or rebuilt, whichever costs less           |
        | values can be compared               | with the adapted weight, formed once and kept       |
        | else: compiling, vmap, trained bases | factored or rebuilt                                 |

        Raises:
            ValueError: `adapter_names` has not one name for each sample, or adapters are merged; or the base weight
                has no values; or an active adapter is to be trained that has not got its expansion's terms.
        """
        if self.base_weight.is_meta and not x.is_meta:
            raise ValueError(without_values(self.layer_name, self.base_layer))
        if self.bases.u.is_meta and not self.base_weight.is_meta:
            self._give_values()
        if not self.training or x.device.type == "cpu":  # Elsewhere the comparison would wait in every step.
            self.follow_copied_weight()
        if self.gradient_probe is not None:
            return functional.with_weight(self.base_layer, x, self.weight, *args, **kwargs)
        if self.training:
            self._refuse_to_train_without_terms()
        if self.takes_projection:  # Of layers that take nothing beside x.
            return self._forward_projection(x, adapter_names)
        if self._disable_adapters:
            if self._unmerged is not None:
                return functional.with_weight(self.base_layer, x, self._unmerged, *args, **kwargs)
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._forward_mixed(x, adapter_names, *args, **kwargs)
        change = self.change_by([] if self.merged_adapters else self.active_adapters)
        terms = change.terms(self.bases)
        if not terms:
            return self.base_layer(x, *args, **kwargs)
        if self.training or self._builds_graph(terms):
            self._kept = None
        elif not self.trains_bases() and KeptWeight.possible(self.base_weight, terms):
            # Trained bases are left out: what was written to their .data would go unnoticed.
            if self._kept is None or not self._kept.fits(self.base_weight, terms):
                self._kept = KeptWeight.form(self.base_weight, terms, self._weight_with)
            return functional.with_weight(self.base_layer, x, self._kept.weight, *args, **kwargs)
        return self._adapted(x, change, self.active_adapters, *args, **kwargs)

    def _adapted(
        self,
        x: Tensor,
        change: WeightChange,
        adapter_names: Sequence[str],
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        has_factors = factored.has_factors(self.base_layer, x, output_size)
        inside, form = self._inside(change, adapter_names) if has_factors else None, self._form(adapter_names)
        if form == "factored" and inside is None:
            raise ValueError(
                f"{self.layer_name} has no factored form: it is a convolution of several groups or a transposed one "
                "whose blocks overlap or are padded, its weight is trained or was changed after it was adapted, or "
                "another active adapter has bases of its own. Use form='auto'."
            )
        return functional.adapted(
            self.base_layer,
            x,
            change.terms(self.bases),
            fan_in_fan_out=self.fan_in_fan_out,
            inside=inside,
            beside=change.beside,
            form=form,
            output_size=output_size,
        )

    def _inside(self, change: WeightChange, adapter_names: Sequence[str]) -> Inside | None:
        """The changed weight along the layer's bases, where these make up the base weight and no adapter has others."""
        own_bases = any(name in self.svd_coefficient_u for name in self.present(adapter_names))
        if own_bases or not self._bases_fit.holds(self.base_weight, self.bases, fan_in_fan_out=self.fan_in_fan_out):
            return None
        return change.inside(self.bases)

    def _refuse_to_train_without_terms(self) -> None:
        if self._disable_adapters or not torch.is_grad_enabled():
            return
        waiting = [name for name in self.present(self.active_adapters) if self.states[name].awaits]
        if waiting:
            raise ValueError(no_terms_yet(self.layer_name, waiting[0]))

    def _form(self, adapter_names: Sequence[str]) -> Form:
        """The form that one of the adapters asks for, the first by name; "auto" where none does."""
        forms: list[Form] = [self.states[name].form for name in self.present(adapter_names)]
        asked = [form for form in forms if form != "auto"]
        return asked[0] if asked else "auto"

    # From a projection that was computed before, such as one kept on disk

    def projection(self) -> Tensor:
        """Give Vh, (rank, fan_in): the frozen product that the layer starts with, the same for all of its adapters.

        While `takes_projection` is set, the layer takes `Vh x` in the place of x: (..., rank) for linear layers,
        ([N], rank, H, W) for convolutions. That holds with any of its adapters, and with none.

        Raises:
            ValueError: An adapter has bases of its own, or the layer is a convolution of more than one position or a
                transposed one.
        """
        reason = None
        if isinstance(self.base_layer, nn.ConvTranspose2d):
            reason = "it is a transposed convolution"
        elif isinstance(self.base_layer, nn.Conv2d) and not factored.is_pointwise(self.base_layer):
            reason = "it is a convolution of more than one position, whose projection has no fewer numbers"
        elif own := sorted({*self.svd_coefficient_u, *self.svd_coefficient_a}):
            reason = f"adapter {own[0]!r} has bases of its own (trainable bases, save_basis, or stored directions)"
        elif not self._bases_fit.holds(self.unmerged_weight, self.bases, fan_in_fan_out=self.fan_in_fan_out):
            reason = "its weight is no longer the one that its bases were computed from"
        if reason:
            raise ValueError(f"{self.layer_name} cannot start from a projection that was computed before: {reason}.")
        return self.bases.vh

    def _forward_projection(self, z: Tensor, adapter_names: Sequence[str] | None) -> Tensor:
        change = self.change_by([])
        if adapter_names is not None and self.present(adapter_names):
            by_sample = self.change_by_sample(adapter_names)
            assert by_sample is not None  # No adapter has bases of its own: `projection` saw to it.
            change = by_sample
        elif adapter_names is None and not self._disable_adapters:
            change = self.change_by(self.merged_adapters or self.active_adapters)
        return factored.from_projection(self.base_layer, z, change.inside(self.bases))

    def _builds_graph(self, terms: list[Factors]) -> bool:
        tensors = [self.base_weight, *(tensor for term in terms for tensor in term)]
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def _forward_mixed(
        self, x: Tensor, adapter_names: Sequence[str], output_size: Sequence[int] | None = None
    ) -> Tensor:
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively, at {self.layer_name}."
            )
        if self.merged_adapters:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first. "
                f"Merged are: {', '.join(self.merged_adapters)}."
            )
        further = {} if output_size is None else {"output_size": output_size}
        present = self.present(adapter_names)
        if not present:
            return self.base_layer(x, **further)
        change = self.change_by_sample(adapter_names)
        if change is not None and factored.has_factors(self.base_layer, x, output_size):
            terms, inside = change.terms(self.bases), self._inside(change, present)
            return functional.adapted_by_sample(self.base_layer, x, terms, inside=inside, beside=change.beside)
        result = self.base_layer(x, **further)
        for name in present:
            rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=x.device)
            part = self._adapted(x[rows], self.change_by([name]), [name], **further)
            result = result.index_copy(0, rows, part.to(result.dtype))
        return result

    # Merge and unmerge

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the change by adapters into the base weight; those merged before stay in it.

        The weight is formed from a kept copy of the base weight with all merged adapters at once, in float32 or wider,
        and rounded once. A change of zero leaves it as it is, bit for bit.

        Raises:
            ValueError: `safe_merge` is set and the merged weight is not finite; the weight is left as it was.
        """
        new = self.present(check_adapters_to_merge(self, adapter_names))
        if not new:
            return
        self.follow_copied_weight()
        unmerged = self.base_weight.detach().clone() if self._unmerged is None else self._unmerged
        merged = self._merged_weight(new)
        if safe_merge:
            self._refuse_not_finite(merged, new)
        self._unmerged = unmerged
        self.base_weight.data = merged
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """See whether these adapters, or the active ones, can be merged as `safe_merge` asks; change nothing.

        Raises:
            ValueError: The merged weight would not be finite.
        """
        wanted = self.active_adapters if adapter_names is None else adapter_names
        new = self.present([name for name in wanted if name not in self.merged_adapters])
        self.follow_copied_weight()
        if new:
            self._refuse_not_finite(self._merged_weight(new), new)

    def _merged_weight(self, new: list[str]) -> Tensor:
        terms = self.terms_of([*self.merged_adapters, *new])
        if not terms:
            return self.unmerged_weight.detach().clone()
        return functional.rebuilt_weight(self.unmerged_weight.detach(), terms, fan_in_fan_out=self.fan_in_fan_out)

    def _refuse_not_finite(self, merged: Tensor, new: list[str]) -> None:
        broken = int((~merged.isfinite()).sum())
        if broken:
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(new)} seems to be broken: merged into "
                f"{self.layer_name}, it would give {broken} of {merged.numel()} values that are NaN or infinite in "
                f"{merged.dtype}. The weight was left as it was; check the coefficients of these adapters."
            )

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight again, bit for bit."""
        if self._unmerged is None:
            warnings.warn(f"Already unmerged. No adapter is merged into {self.layer_name}.", stacklevel=2)
            return
        self.base_weight.data = self._unmerged
        self._unmerged = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Tell PEFT that linear layers can be converted to LoRA, which has matrices only."""
        return not isinstance(self.base_layer, (nn.Conv2d, nn.ConvTranspose2d))

    # Devices and dtypes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.follow_copied_weight()
        super()._apply(fn, recurse)
        if self._unmerged is not None:
            self._unmerged = fn(self._unmerged)
        self._kept = None
        self._sample = self._sample and WeightSample.of(self.unmerged_weight)
        self._move_state(self.base_weight.device)
        return self

    def _move_state(self, device: torch.device) -> None:
        """Bring the bases and what belongs to the adapters to a device; their dtypes stay."""
        if device.type == "meta" or self.bases.is_meta:
            return
        if self.bases.u.device != device:  # Other tensors of the same values would be compared with the weight again.
            self.bases = self.bases.to(device)
        for state in self.states.values():
            state.origin = state.origin.to(device)
            state.groups = state.groups if state.groups is None else state.groups.to(device)
            state.expansion = state.expansion and state.expansion.to(device)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Bring an adapter to the base layer's device. PEFT's own also rounds it to the base layer's dtype."""
        target = self.base_weight.device if device is None else device
        if target.type == "meta":
            return
        for _, key, parameter in self.parameters_of_adapters():
            if key == adapter_name and not parameter.is_meta:
                parameter.data = parameter.data.to(target)


class Linear(SVDCoefficientLayer):
    """A linear layer with trained coefficients, for `nn.Linear` and, with fan_in_fan_out, transformers' Conv1D.

    With the weight `W` (out, in) and p of shape (min(out, in),): `y = x (W + U diag(p - p0) Vh)^T + bias`.
    """

    def __init__(self, base_layer: nn.Module, name: str, match: Match, *, fan_in_fan_out: bool = False) -> None:
        super().__init__(base_layer, name, match, fan_in_fan_out=fan_in_fan_out)
        shape = self.base_weight.shape
        self.out_features, self.in_features = reversed(shape) if fan_in_fan_out else shape


class Conv2d(SVDCoefficientLayer):
    """A convolution with trained coefficients.

    With the kernel read as a matrix `W` (out, in/groups*kh*kw) and p of shape (min(out, in/groups*kh*kw),):
    `y = conv(x, W + U diag(p - p0) Vh) + bias`.
    """

    def __init__(self, base_layer: nn.Conv2d, name: str, match: Match) -> None:
        super().__init__(base_layer, name, match)
        self.in_features, self.out_features = base_layer.in_channels, base_layer.out_channels
        self.in_channels, self.out_channels = base_layer.in_channels, base_layer.out_channels
        self.groups = base_layer.groups


class ConvTranspose2d(SVDCoefficientLayer):
    """A transposed convolution with trained coefficients.

    Rows of its weight are inputs. With the kernel read as a matrix `W` (in, out/groups*kh*kw) and p of shape
    (min(in, out/groups*kh*kw),): `y = conv_transpose(x, W + U diag(p - p0) Vh) + bias`. Where kernel and stride are
    equal and nothing is padded, dilated or grouped, p holds the singular values of the layer itself, and training
    computes with matrix products, see `samparser.tuner.transposed`. Takes `output_size` as the plain layer does.
    """

    def __init__(self, base_layer: nn.ConvTranspose2d, name: str, match: Match) -> None:
        super().__init__(base_layer, name, match)
        self.in_features, self.out_features = base_layer.in_channels, base_layer.out_channels
        self.in_channels, self.out_channels = base_layer.in_channels, base_layer.out_channels
        self.groups = base_layer.groups
