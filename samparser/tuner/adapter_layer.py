"""Adapters of one layer: their parameters, which of them train, scaling, and how they follow the base weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .base_record import Match, Record, make_record, match_base, report
from .bases import WeightSample, as_factored, bases_of, is_plain, value_hash, whole_tensor
from .choices import chosen_terms, stored_dtype, wanted_terms
from .config import COMPILED, Form, SVDCoefficientConfig
from .expansion import Chosen, Expansion, Wanted
from .factors import Factors, coefficient_groups
from .weight_cache import KeptWeight

COEFFICIENTS = ("svd_coefficient_p", "svd_coefficient_d", "svd_coefficient_c")
BASES = ("svd_coefficient_u", "svd_coefficient_vh")
DIRECTIONS = ("svd_coefficient_a", "svd_coefficient_b")


class CoefficientDict(nn.ParameterDict):
    """Adapter parameters by adapter name, that a cast of the model does not make narrower.

    Changes of coefficients are small against the coefficients: in bfloat16 most steps of training would round to none.
    So `model.half()` and `model.to(torch.bfloat16)` move these parameters, but leave their dtype alone.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(keeping_dtype(fn), recurse)


def keeping_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Take from `fn`, a conversion as `nn.Module.to` applies it, what would make a tensor narrower."""

    def convert(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return fn(tensor)
        probe = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
        if torch.promote_types(probe.dtype, tensor.dtype) == probe.dtype:
            return fn(tensor)
        return tensor.to(probe.device)

    return convert


@dataclass
class AdapterState:
    """What a layer knows of one of its adapters besides its parameters.

    `origin` (k,) holds the p0 from which the adapter's changes count: the one saved with it, or the layer's own.
    `groups` (k,) says which of the k leading coefficients move together; None when none have to. `record` is what
    the adapter remembers of the base weight, None while that has no values. `check_later` is set for an adapter that
    was loaded while the base weight had no values. `form` is how the layer should compute, see
    `samparser.tuner.functional`. `relative` says that d is a share of p0. `expansion` are the terms beside the
    coefficients, `wanted` those that were asked for; terms that are wanted and not there yet wait for the data pass.
    """

    origin: Tensor
    groups: Tensor | None
    initial_scaling: float
    trained: frozenset[str]
    record: Record | None
    base_check: str
    check_later: bool = False
    form: Form = "auto"
    relative: bool = False
    expansion: Expansion | None = None
    wanted: Wanted | None = None

    @property
    def awaits(self) -> bool:
        """Whether the adapter has yet to get its terms, from `initialize_expansion`."""
        return self.wanted is not None and self.expansion is None

    @property
    def rank(self) -> int:
        """The number k of leading coefficients that the adapter changes."""
        return len(self.origin)


class AdapterLayer(nn.Module, BaseTunerLayer):
    """The adapters of one layer; `ChangedLayer` has the change of the weight that they make together.

    `bases` are the factors `u diag(p0) vh` of the layer's weight, shared by all adapters; the weight was rounded to
    `rounded_to` first, where that is set. Each adapter has either p itself (`svd_coefficient_p`) or d with
    p = p0 (1 + d) or p0 + d (`svd_coefficient_d`), of shape (k,), and bases of its own (`svd_coefficient_u`,
    `svd_coefficient_vh`) if it trains or saves them. The terms of an expansion have coefficients
    (`svd_coefficient_c`) and, where they are no pairs of bases, vectors (`svd_coefficient_a`, `svd_coefficient_b`).
    """

    adapts_coefficients = True
    adapter_layer_names = (*COEFFICIENTS, *BASES, *DIRECTIONS)
    other_param_names = ("scaling", "states")
    active_adapters: list[str]
    base_layer: nn.Module
    svd_coefficient_p: CoefficientDict
    svd_coefficient_d: CoefficientDict
    svd_coefficient_c: CoefficientDict
    svd_coefficient_u: CoefficientDict
    svd_coefficient_vh: CoefficientDict
    svd_coefficient_a: CoefficientDict
    svd_coefficient_b: CoefficientDict

    def __init__(self, base_layer: nn.Module, name: str, match: Match, *, fan_in_fan_out: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fan_in_fan_out = fan_in_fan_out
        self.merged_adapters: list[str] = []
        self._unmerged: Tensor | None = None
        self._kept: KeptWeight | None = None
        self._sample = WeightSample.of(self.base_weight)
        self._seen: dict[str, Tensor] = {}
        self._pair_bases: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self.layer_name = name
        self.bases: Factors = match.bases
        self.rounded_to = match.rounded_to
        for kind in self.adapter_layer_names:
            setattr(self, kind, CoefficientDict({}))
        self.scaling: dict[str, float] = {}
        self.states: dict[str, AdapterState] = {}
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self._flags_before_disabling: dict[tuple[str, str], bool] | None = None
        self.register_load_state_dict_post_hook(AdapterLayer._follow_loaded_weight)
        super().train(base_layer.training)  # Not `self.train`: the base weight is frozen after this.

    @property
    def base_weight(self) -> Tensor:
        """The parameter of the base layer, with what is merged into it."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def unmerged_weight(self) -> Tensor:
        """The weight of the base layer, without what is merged into it."""
        return self.base_weight if self._unmerged is None else self._unmerged

    def update_layer(
        self, adapter_name: str, config: SVDCoefficientConfig, match: Match, rank: int | None = None
    ) -> None:
        """Add an adapter to the layer, or start an existing one anew.

        Args:
            adapter_name: The adapter.
            config: Its configuration.
            match: Where the adapter's coefficients count from, and what it remembers of the base weight.
            rank: How many leading coefficients the adapter changes; None for all.
        """
        k = min(rank or self.bases.rank, self.bases.rank)
        origin = match.origin[:k]
        trained = set(BASES) if config.trains_bases else set()
        if config.trainable not in ("bases", "expansion"):
            offset = config.parametrization != "absolute"
            name = "svd_coefficient_d" if offset else "svd_coefficient_p"
            getattr(self, name)[adapter_name] = nn.Parameter(torch.zeros_like(origin) if offset else origin.clone())
            trained.add(name)
        if config.has_own_bases:
            self.svd_coefficient_u[adapter_name] = nn.Parameter(self.bases.u[:, :k].clone())
            self.svd_coefficient_vh[adapter_name] = nn.Parameter(self.bases.vh[:k].clone())
        self.scaling[adapter_name] = float(config.scaling)
        self.states[adapter_name] = AdapterState(
            origin=origin,
            # Bases that travel with the adapter need not be found again, so nothing has to move together.
            groups=None if config.has_own_bases or match.group_p0.is_meta else coefficient_groups(match.group_p0, k),
            initial_scaling=self.scaling[adapter_name],
            trained=frozenset(trained),
            record=match.record,
            base_check=config.base_check,
            check_later=match.kind == "unchecked",
            form=config.form,
            relative=config.parametrization == "relative",
        )
        if config.expansion is not None:
            self.states[adapter_name].wanted = wanted_terms(config, self.layer_name)
            if expansion := chosen_terms(config, self.layer_name, self.bases.rank):
                self.set_expansion(adapter_name, expansion, stored_dtype(config))
        if not config.init_weights:
            self._start_at_random(adapter_name)
        self.set_adapter(self.active_adapters)

    @torch.no_grad()
    def _start_at_random(self, adapter_name: str) -> None:
        """Move every trained part of an adapter by about a tenth, drawn from torch's generator."""
        state = self.states[adapter_name]
        for name in sorted(state.trained):
            parameter = getattr(self, name)[adapter_name]
            if parameter.is_meta:
                continue
            noise = 0.1 * torch.randn(parameter.shape).to(parameter)
            if name == "svd_coefficient_p":
                noise = noise * state.origin
            elif name in BASES:
                noise = noise * parameter.square().mean().sqrt()
            parameter.add_(noise)

    def set_expansion(
        self, adapter_name: str, expansion: Expansion, dtype: torch.dtype, chosen: Chosen | None = None
    ) -> None:
        """Give an adapter its terms, with coefficients of zero; those that it had keep theirs.

        Args:
            adapter_name: The adapter.
            expansion: All of its terms.
            dtype: That of the stored vectors.
            chosen: The directions that come last, with their vectors; None leaves the stored vectors to be loaded.
        """
        out, fan_in = len(self.bases.u), self.bases.vh.shape[1]
        state, device = self.states[adapter_name], self.bases.u.device
        state.expansion = expansion if self.bases.is_meta else expansion.to(device)
        if not expansion.count:  # Bases of which no two can be paired: there is nothing to train.
            return
        empty = torch.zeros(out, expansion.stored, dtype=dtype), torch.zeros(expansion.stored, fan_in, dtype=dtype)
        a, b = empty if chosen is None or chosen.a is None or chosen.b is None else (chosen.a, chosen.b)
        c = self.bases.p.new_zeros(expansion.count)
        if adapter_name in self.svd_coefficient_c:
            before = self.svd_coefficient_c[adapter_name].detach()
            c[: len(before)] = before
            if adapter_name in self.svd_coefficient_a and chosen is not None and chosen.a is not None:
                a = torch.cat([self.svd_coefficient_a[adapter_name].detach(), a], 1)
                b = torch.cat([self.svd_coefficient_b[adapter_name].detach(), b])
        self.svd_coefficient_c[adapter_name] = nn.Parameter(c)
        if expansion.stored:
            self.svd_coefficient_a[adapter_name] = nn.Parameter(a.to(device), requires_grad=False)
            self.svd_coefficient_b[adapter_name] = nn.Parameter(b.to(device), requires_grad=False)
        state.trained |= {"svd_coefficient_c"}

    def parameters_of_adapters(self) -> list[tuple[str, str, nn.Parameter]]:
        """List all adapter parameters of the layer as (kind, adapter, parameter)."""
        return [(name, key, p) for name in self.adapter_layer_names for key, p in getattr(self, name).items()]

    # Which adapters are active and which of their parts train

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active and, unless `inference_mode`, trainable; all others are frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._flags_before_disabling = None
        self._freeze_untrained()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Freeze or unfreeze adapters; parts that an adapter does not train, such as saved bases, stay frozen."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze_untrained()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters of the layer off, which freezes them, or on, with what required a gradient before."""
        if not enabled and not self._disable_adapters:
            flags = {(name, key): p.requires_grad for name, key, p in self.parameters_of_adapters()}
            super().enable_adapters(False)
            self._flags_before_disabling = flags
        elif enabled and self._disable_adapters:
            before = self._flags_before_disabling or {}
            super().enable_adapters(True)
            for name, key, parameter in self.parameters_of_adapters():
                parameter.requires_grad_(before.get((name, key), parameter.requires_grad))

    def _freeze_untrained(self) -> None:
        for name, key, parameter in self.parameters_of_adapters():
            if name not in self.states[key].trained and parameter.is_leaf:
                parameter.requires_grad_(False)

    # Scaling, as LoRA has it

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling to `scale` times the one it was configured with; other layers' adapters pass."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self.states[adapter].initial_scaling

    def scale_layer(self, scale: float) -> None:
        """Multiply the scaling of all active adapters."""
        for adapter in self.present(self.active_adapters):
            self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scaling of all active adapters, or set it back to the configured one when `scale` is None."""
        for adapter in self.present(self.active_adapters):
            initial, now = self.states[adapter].initial_scaling, self.scaling[adapter]
            self.scaling[adapter] = initial if scale is None else now / scale

    def present(self, adapter_names: Sequence[str]) -> list[str]:
        """Choose the adapters among these that this layer has, in an order that does not depend on theirs."""
        return sorted(set(adapter_names) & set(self.states))

    # When the base weight gets its values, or other ones, after the layer was adapted: the bases follow it

    @torch.no_grad()
    def _give_values(self) -> None:
        """Compute the bases of a layer whose weight was on the meta device and now has values.

        Raises:
            ValueError: An adapter of the layer was trained on other base weights, or its coefficients have no values.
        """
        for kind, adapter, parameter in self.parameters_of_adapters():
            if parameter.is_meta:
                raise ValueError(
                    f"{self.layer_name}: the base weight has values, but {kind} of adapter {adapter!r} is still on the "
                    "meta device. Load the adapter too, or make it after the base model has its values."
                )
        bases, rounded_to = None, None
        for state in self.states.values():
            saved = state.record if state.check_later else None
            match = match_base(
                self.layer_name,
                self.unmerged_weight,
                saved,
                fan_in_fan_out=self.fan_in_fan_out,
                present=bases,
                rounded_to=rounded_to,
            )
            exact = "svd_coefficient_u" in state.trained
            report([match], base_check=state.base_check, exact_anyway=exact)
            bases, rounded_to, rank = match.bases, match.rounded_to, state.rank
            state.origin, state.record, state.check_later = match.origin[:rank], match.record, False
            state.groups = None if exact else coefficient_groups(match.group_p0, rank)
            state.expansion = state.expansion and state.expansion.to(match.bases.u.device)
        self.bases = bases or bases_of(self.layer_name, self.unmerged_weight, fan_in_fan_out=self.fan_in_fan_out)
        self.rounded_to = rounded_to
        self._sample = WeightSample.of(self.unmerged_weight)

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation, and look whether the base weight was exchanged meanwhile.

        Trainers put a model into training mode before each step; an accelerator would be waited for in each, so there
        only a change of the mode looks.
        """
        if mode != self.training or self.base_weight.device.type == "cpu":
            self.follow_copied_weight()
        return super().train(mode)

    @torch.no_grad()
    def follow_copied_weight(self) -> None:
        """Compute the bases anew where somebody wrote other values into the base weight, as `p.data.copy_` does.

        Nothing else tells: such writing changes neither the parameter nor its version. A base weight that is trained
        itself goes its own way, and the adapters keep the bases they have.
        """
        if self._sample is None or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if self.base_weight.requires_grad:
            self._sample = None
            return
        plain = {name: p for name, p in self.svd_coefficient_p.items() if is_plain(p)}
        if not self._sample.is_of(self.unmerged_weight):
            # Coefficients that changed since the last look were written along with the weight.
            seen = {name: self._seen.get(name, self.states[name].origin.to(p.dtype)) for name, p in plain.items()}
            came_along = {name for name, p in plain.items() if not torch.equal(p, seen[name].to(p.device))}
            self._split_again(self.unmerged_weight, came_along)
        self._seen = {name: p.detach().clone() for name, p in plain.items()}

    @torch.no_grad()
    def _follow_loaded_weight(self, incompatible_keys: Any) -> None:
        """Compute the bases anew where `load_state_dict` brought other base weights."""
        weight = whole_tensor(self.unmerged_weight)
        records = [state.record for state in self.states.values() if state.record is not None]
        if weight.is_meta or self.bases.is_meta or self.merged_adapters or not records:
            return
        if value_hash(as_factored(weight, self.rounded_to)).startswith(records[0]["sha256"]):
            return

        missing = [name.replace(COMPILED, "") for name in incompatible_keys.missing_keys]
        ends = {f"{self.layer_name}.svd_coefficient_p.{name}": name for name in self.states}
        absent = {name for end, name in ends.items() if any(key.endswith(end) for key in missing)}
        self._split_again(weight, set(self.states) - absent)

    def _split_again(self, weight: Tensor, came_along: set[str]) -> None:
        """Compute the bases of a base weight that has other values now.

        Coefficients that came along with it count from the new p0. Those that did not keep their change; where that is
        none, as for an adapter that was not trained, they start at the new p0. So do bases of an adapter's own.
        """
        before = self.bases
        self.bases = bases_of(self.layer_name, weight, fan_in_fan_out=self.fan_in_fan_out, rounded_to=self.rounded_to)
        for adapter, state in self.states.items():
            k = state.rank
            kept = adapter in self.svd_coefficient_p and adapter not in came_along
            untrained = (state.origin, before.u[:, :k], before.vh[:k])
            starts = (self.bases.p[:k], self.bases.u[:, :k], self.bases.vh[:k])
            for name, values, start in zip(("svd_coefficient_p", *BASES), untrained, starts, strict=True):
                own = getattr(self, name)
                # A shard cannot be written to from here; untrained coefficients keep their change of none.
                if adapter in own and is_plain(own[adapter]) and torch.equal(own[adapter], values.to(own[adapter])):
                    own[adapter].copy_(start)
                    kept = kept and name != "svd_coefficient_p"
            if not kept:
                state.origin = self.bases.p[:k]
            state.groups = None if adapter in self.svd_coefficient_u else coefficient_groups(self.bases.p, k)
            origin = state.origin if kept else None
            state.record = make_record(as_factored(weight, self.rounded_to), self.bases.p, origin)
        self._kept, self._sample = None, WeightSample.of(self.unmerged_weight)
