"""Tuner model that PEFT drives: injection, merging, saving and mixed batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .adapter_file import check_adapter_file, check_layers, check_tensors
from .base_record import Match, match_base, report
from .changed_layer import no_terms_yet
from .choices import check_patterns, chosen_terms
from .config import COMPILED, PREFIX, SVDCoefficientConfig, hash_of_weights
from .defaults import MODEL_TYPES, NECK, default_targets
from .factors import free_coefficients
from .layer import BASE, Conv2d, ConvTranspose2d, Linear, SVDCoefficientLayer
from .targets import UnsupportedModuleError, refuse_offloaded, resolve_targets, unsupported_reason
from .training_loop import warn_of_running_statistics
from .weighted_adapter import check_sum, config_of_sum, fill_sum


class SVDCoefficientModel(BaseTuner):
    """A model whose targeted layers are changed through the coefficients of their weights.

    Made by `peft.get_peft_model(model, SVDCoefficientConfig(...))`; see `SVDCoefficientConfig` for the choices.
    Hotswapping of adapters and `PeftMixedModel` know PEFT's own methods only and refuse this one.
    """

    prefix = PREFIX
    tuner_layer_cls = SVDCoefficientLayer
    # PEFT's name for such a table; which levels of a neck are live, `default_targets` finds in the model's config.
    target_module_mapping: ClassVar = {model_type: [NECK] for model_type in MODEL_TYPES}
    _looked_for_running_statistics = False

    # Injection

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model; see PEFT's `BaseTuner.inject_adapter`.

        Everything that can be refused is refused before the first layer is replaced.
        """
        self._planned: dict[str, Match] = {}
        try:
            with _ordinary_tensors():
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            self._planned = {}
        self.peft_config[adapter_name]._source = None
        self._warn_of_tied_coefficients(adapter_name)
        self._warn_of_shared_weights(adapter_name)

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        """Find what PEFT would have to keep tied; nothing in models that cannot say what their embeddings are."""
        try:
            return super()._get_module_names_tied_with_embedding()
        except NotImplementedError:  # As models of vision raise where transformers finds no embedding of tokens.
            return []

    def _prepare_adapter_config(self, peft_config: SVDCoefficientConfig, model_config: dict) -> SVDCoefficientConfig:
        if peft_config.target_modules is None:
            model_type = str(model_config.get("model_type"))
            known = default_targets(model_type, model_config)
            if known is None:
                raise ValueError(
                    "Please specify `target_modules` in `peft_config`: there is no default target for models of type "
                    f"{model_type!r} (there is for {', '.join(sorted(MODEL_TYPES))})."
                )
            peft_config.target_modules = set(known)
        return peft_config

    def _prepare_model(self, peft_config: SVDCoefficientConfig, model: nn.Module) -> None:
        """Resolve the targets, factor their weights and compare them with what the adapter remembers of them."""
        # All refusals come before the first layer is replaced: of the file, of the names, of the weights.
        if peft_config._source is not None:
            check_adapter_file(peft_config, peft_config._source, model)
        names = resolve_targets(peft_config, model)
        if names is None:
            return
        check_layers(peft_config, map(_without_compile_prefix, names))
        refuse_offloaded(model, names)
        if peft_config.expansion is not None:
            check_patterns(peft_config, [_without_compile_prefix(name) for name in names])
        self._planned = {name: self._match(peft_config, name, model.get_submodule(name)) for name in names}
        report(
            self._planned.values(),
            base_check=peft_config.base_check,
            exact_anyway=peft_config.save_basis or peft_config.trainable != "coefficients",
        )
        if peft_config.expansion is not None:  # Pairs of bases that a layer does not have are refused.
            for name, match in self._planned.items():
                chosen_terms(peft_config, _without_compile_prefix(name), match.bases.rank)
        peft_config.target_modules = set(names)

    def _match(self, config: SVDCoefficientConfig, name: str, target: nn.Module) -> Match:
        name = _without_compile_prefix(name)
        saved = (config.base_record or {}).get(name)
        if isinstance(target, SVDCoefficientLayer):
            return match_base(
                name,
                target.unmerged_weight,
                saved,
                fan_in_fan_out=target.fan_in_fan_out,
                present=target.bases,
                rounded_to=target.rounded_to,
            )
        weight = target.weight
        assert isinstance(weight, Tensor)
        return match_base(name, weight, saved, fan_in_fan_out=_fan_in_fan_out(config, target))

    def _create_and_replace(
        self,
        peft_config: SVDCoefficientConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        reason = unsupported_reason(target)
        if reason is not None:
            raise UnsupportedModuleError(
                f"Target module {target} is not supported. Cannot adapt {current_key}: {reason} Name it in "
                "exclude_modules to leave it as it is."
            )
        match = self._planned.get(current_key) or self._match(peft_config, current_key, target)
        rank = peft_config.leading(current_key, match.bases.rank)
        if isinstance(target, SVDCoefficientLayer):
            target.update_layer(adapter_name, peft_config, match, rank)
            layer = target
        else:
            layer = self._new_layer(peft_config, target, _without_compile_prefix(current_key), match)
            layer.set_adapter(self.active_adapters)
            layer.update_layer(adapter_name, peft_config, match, rank)
            self._replace_module(parent, target_name, layer, target)

    def _new_layer(self, config: SVDCoefficientConfig, base: nn.Module, name: str, match: Match) -> SVDCoefficientLayer:
        if isinstance(base, nn.Conv2d):
            return Conv2d(base, name, match)
        if isinstance(base, nn.ConvTranspose2d):
            return ConvTranspose2d(base, name, match)
        return Linear(base, name, match, fan_in_fan_out=_fan_in_fan_out(config, base))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies child.weight, which containers in modules_to_save do not have, and moves adapters by dtype.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Round an adapter to its base layers' dtype, only where autocast_adapter_dtype=False asks for it."""
        if autocast_adapter_dtype:
            return
        for layer in self._layers():
            for name in layer.adapter_layer_names:
                parameters = getattr(layer, name)
                if adapter_name in parameters:
                    parameter = parameters[adapter_name]
                    parameter.data = parameter.data.to(layer.base_layer.weight.dtype)

    def _warn_of_tied_coefficients(self, adapter_name: str) -> None:
        """Say where most coefficients cannot train by themselves, as in layers that start as orthogonal matrices."""
        few = []
        for layer in self._layers():
            state = layer.states.get(adapter_name)
            free = free_coefficients(state.groups, state.rank) if state else 0
            if state and 2 * free < state.rank:
                few.append(f"{layer.layer_name} ({free} of {state.rank})")
        if few:
            warnings.warn(
                f"Few coefficients can change by themselves in {', '.join(few[:5])}: equal singular values move "
                "together and those that are zero do not move, because their bases cannot be found again on another "
                "machine. save_basis=True saves the bases and frees all of them.",
                stacklevel=2,
            )

    def _warn_of_shared_weights(self, adapter_name: str) -> None:
        """Name layers whose weight another module uses as well; one layer that stands in several places is none."""
        users: dict[int, dict[int, str]] = {}
        for name, module in self.model.named_modules(remove_duplicate=False):
            parent = self.model.get_submodule(name.rpartition(".")[0])
            user, shown = (parent, parent.layer_name) if isinstance(parent, SVDCoefficientLayer) else (module, name)
            for weight in module.parameters(recurse=False):
                users.setdefault(id(weight), {}).setdefault(id(user), shown)
        shared = []
        for layer in self._layers():
            others = users.get(id(layer.base_layer.weight), {}).items()
            if adapter_name in layer.states and (names := [name for user, name in others if user != id(layer)]):
                shared.append(f"{layer.layer_name} (with {', '.join(names)})")
        if shared:
            warnings.warn(
                f"Adapted layers share their weight with other modules: {', '.join(shared[:5])}. The coefficients act "
                "in the adapted layer alone, but merging changes the weight for all of them, so that the merged model "
                "gives other outputs than the adapter. Before adapting, give each module a weight of its own: "
                "module.weight = nn.Parameter(module.weight.detach().clone()).",
                stacklevel=2,
            )

    def _layers(self) -> Iterator[SVDCoefficientLayer]:
        return (module for module in self.model.modules() if isinstance(module, SVDCoefficientLayer))

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters, by default the active ones, into the base weights; see `BaseTuner.merge_adapter`.

        Raises:
            ValueError: `safe_merge` is set and a merged weight would not be finite; all weights stay as they were.
        """
        if safe_merge:
            self._check_merge(adapter_names)
        super().merge_adapter(adapter_names, safe_merge=False)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge adapters and give the plain model back; see `BaseTuner.merge_and_unload`.

        Raises:
            ValueError: `safe_merge` is set and a merged weight would not be finite; all weights stay as they were.
        """
        if safe_merge:
            self._check_merge(adapter_names)
        return super().merge_and_unload(progressbar=progressbar, safe_merge=False, adapter_names=adapter_names)

    def _check_merge(self, adapter_names: list[str] | None) -> None:
        # PEFT checks and merges one layer after another, and an error would leave the model half merged.
        for layer in self._layers():
            layer.check_merge(adapter_names)

    # Scaling and sums

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set an adapter's scaling in all layers to `scale` times the one it was configured with.

        0 is the base model, 1 the adapter as it was trained; values between interpolate.

        Raises:
            ValueError: There is no such adapter.
        """
        if adapter not in self.peft_config:
            raise ValueError(f"Adapter {adapter} does not exist; there are {', '.join(sorted(self.peft_config))}.")
        for layer in self._layers():
            layer.set_scale(adapter, scale)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: Literal["linear"] = "linear",
    ) -> None:
        """Add an adapter whose change of every weight is the sum of others' changes, each times a weight.

        Exact, with positive and negative weights: `p = p0 + sum_i weight_i scaling_i (p_i - p0)`. The new adapter is
        neither active nor trained. Modules in modules_to_save are copied if only one of the adapters has them.

        Raises:
            ValueError: A name or weight is not possible, or the adapters have no sum in coefficients.
        """
        check_sum(self.model, self.peft_config, adapters, weights, adapter_name, combination_type)
        self.peft_config[adapter_name] = config_of_sum(self.model, self.peft_config, adapters)
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        fill_sum(self.model, adapters, weights, adapter_name)
        self.set_requires_grad(adapter_name, requires_grad=False)

    # State dicts

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: SVDCoefficientConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        # Not written to config.base_record: the same configuration may serve other models, which would be compared.
        layers = [module for module in model.modules() if isinstance(module, SVDCoefficientLayer)]
        for layer in layers:
            layer.follow_copied_weight()
        states = {layer.layer_name: layer.states.get(adapter_name) for layer in layers}
        config._record_to_save = {name: state.record for name, state in states.items() if state and state.record}
        if waiting := [name for name, state in states.items() if state and state.awaits]:
            raise ValueError(no_terms_yet(waiting[0], adapter_name))
        expansions = {name: state.expansion for name, state in states.items() if state and state.expansion}
        config._expansion_to_save = {name: expansion.record() for name, expansion in expansions.items()} or None
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, *args, **kwargs)
        # What PEFT adds for modules_to_save, which is hashed along.
        whole = dict(found)
        for name, module in model.named_modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                name = name.removeprefix("_fsdp_wrapped_module.")  # FSDP takes it out of the names of tensors.
                below = {key.removeprefix(f"{name}."): t for key, t in state_dict.items() if key.startswith(f"{name}.")}
                kept = module.adapter_state_dict(adapter_name, below)
                whole |= {f"{name}.{key}": tensor for key, tensor in kept.items()}
        named = {cls._remove_adapter_name_from_key(key, adapter_name): tensor for key, tensor in whole.items()}
        config._hash_to_save = hash_of_weights(named)
        return found

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return super()._remove_adapter_name_from_key(key, adapter_name).replace(COMPILED, "")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SVDCoefficientConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        plain = {key.replace(COMPILED, ""): tensor for key, tensor in state_dict.items()}
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, plain)
        present = model.state_dict()
        here = {key.replace(COMPILED, ""): key for key in present}
        mapped = {here.get(key, key): tensor for key, tensor in mapped.items()}
        check_tensors(mapped, present)
        return mapped

    # Batches with an adapter for each sample

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        adapter_names = kwargs.get("adapter_names")
        if self.training and not self._looked_for_running_statistics and not torch.compiler.is_compiling():
            self._looked_for_running_statistics = True
            warn_of_running_statistics(self.model)
        if adapter_names is None:
            yield
            return
        self._check_adapter_names(adapter_names)
        hook = partial(_pass_adapter_names, adapter_names=adapter_names)
        takers = [m for m in self.modules() if isinstance(m, (SVDCoefficientLayer, AuxiliaryTrainingWrapper))]
        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in takers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, adapter_names: Sequence[str]) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode: call model.eval() first.")
        known = {name for layer in self._layers() for name in layer.states} | {BASE}
        unknown = sorted(set(adapter_names) - known)
        if unknown:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. "
                f"There are {', '.join(sorted(known))}."
            )
        for name, module in self.model.named_modules():
            if isinstance(module, nn.MultiheadAttention) and isinstance(module.out_proj, SVDCoefficientLayer):
                raise TypeError(
                    f"Cannot use an adapter for each sample: {name} is an nn.MultiheadAttention, which reads the "
                    "weight of its adapted out_proj instead of calling it. Run each adapter by itself."
                )


def _pass_adapter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, adapter_names: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _fan_in_fan_out(config: SVDCoefficientConfig, base: nn.Module) -> bool:
    """Whether a layer's weight is stored as (in, out); the type of the layer knows."""
    if config.fan_in_fan_out and not isinstance(base, Conv1D):
        warnings.warn(
            f"fan_in_fan_out is set to True but the target module is `torch.nn.{type(base).__name__}`, which stores "
            "its weight as (out, in). Setting fan_in_fan_out to False.",
            stacklevel=2,
        )
        config.fan_in_fan_out = False
    return isinstance(base, Conv1D)


def _without_compile_prefix(name: str) -> str:
    """A module's name without what torch.compile puts into it."""
    return name.replace(COMPILED, "")


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Leave `torch.inference_mode`, whose tensors can never be trained."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
