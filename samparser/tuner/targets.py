"""Target modules: from the names a user gives to the layers that are adapted, and why others cannot be.

PEFT compares names with the layers themselves, so a container such as `neck` would match nothing it can adapt. Here
every name, regular expression and index is resolved against the model once, before anything is replaced, and the full
names of the layers go back into the configuration. Resolving those again gives the same names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from peft import NoMatchingPeftModuleError, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .config import COMPILED, SVDCoefficientConfig

SUPPORTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, Conv1D)
_SUPPORTED_ARE = "Coefficients need a floating-point nn.Linear, nn.Conv2d, nn.ConvTranspose2d or transformers Conv1D."
_KEEP_IN_MEMORY = (
    "Load the base model without offloading, or with a device_map that keeps this layer's weight on a device."
)


class UnsupportedModuleError(ValueError, TypeError):
    """A layer that cannot be adapted was named: a `ValueError` for PEFT, which raises these, and a `TypeError`."""


# From names to layers


def resolve_targets(config: SVDCoefficientConfig, model: nn.Module) -> list[str] | None:
    """Find the full names of the layers that `config` adapts in `model`, sorted; None for PEFT's dummy target.

    Raises:
        NoMatchingPeftModuleError: A name in target_modules is not in the model, or nothing is left to adapt.
        UnsupportedModuleError: A layer that cannot be adapted was named explicitly.
    """
    targets = config.target_modules
    assert targets is not None
    if targets == DUMMY_TARGET_MODULES:
        return None
    # Modules go by the names that they have without torch.compile, and are given back by those that they have here.
    named = {name.replace(COMPILED, ""): (name, module) for name, module in _visible_modules(model)}
    modules = {name: module for name, (_, module) in named.items()}
    if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        found = _all_linear(config, model, modules)
    elif isinstance(targets, str):
        found = _by_pattern(targets, modules)
    else:
        targets = {target.replace(COMPILED, "") for target in targets}
        found = _by_names(targets, modules)
        found = {name for name in found if name in targets or _layer_index_wanted(config, name)}
    kept = {name for name in found if not _excluded(config, name)}
    if not kept:
        raise NoMatchingPeftModuleError(_nothing_left(config, found, modules))
    return sorted(named[name][0] for name in kept)


def _visible_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """All named modules, without the inside of adapter layers."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name or any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(name + ".")
        yield name, module


def _all_linear(config: SVDCoefficientConfig, model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    """All linear layers except the head that gives words or classes, as PEFT takes them."""
    head = None
    if isinstance(model, PreTrainedModel):
        head = model.get_output_embeddings()
        if head is None and config.task_type == TaskType.SEQ_CLS:
            head = next((getattr(model, name) for name in SEQ_CLS_HEAD_NAMES if hasattr(model, name)), None)
    linear = {name: module for name, module in modules.items() if _is_linear(module) and module is not head}
    return {name for name, module in linear.items() if unsupported_reason(module) is None}


def _is_linear(module: nn.Module) -> bool:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, (nn.Linear, Conv1D))


def _by_pattern(pattern: str, modules: dict[str, nn.Module]) -> set[str]:
    matched = [name for name in modules if re.fullmatch(pattern, name)]
    found = {leaf for name in matched for leaf in _supported_below(name, modules)}
    if matched and not found:
        raise UnsupportedModuleError(_nothing_supported(pattern, matched, modules))
    if not matched:
        raise NoMatchingPeftModuleError(
            f"{_not_found(pattern)} target_modules={pattern!r} is not the whole name of any module of the model. As a "
            "string it is a regular expression; a list of names may give their ends only."
            f"{_close(pattern, modules)}"
        )
    return found


def _by_names(targets: Iterable[str], modules: dict[str, nn.Module]) -> set[str]:
    found: set[str] = set()
    for target in sorted(targets):
        matched = [name for name in modules if _ends_with(name, target)]
        if not matched:
            raise NoMatchingPeftModuleError(
                f"{_not_found({target})} target_modules names {target!r}, but no module of the model has that name or "
                f"a name that ends in '.{target}'.{_close(target, modules)}"
            )
        below = {leaf for name in matched for leaf in _supported_below(name, modules)}
        if not below:
            raise UnsupportedModuleError(_nothing_supported(target, matched, modules))
        found |= below
    return found


def _supported_below(name: str, modules: dict[str, nn.Module]) -> set[str]:
    """The layers that can be adapted at or below a module."""
    inside = (n for n in modules if n == name or n.startswith(name + "."))
    return {n for n in inside if unsupported_reason(modules[n]) is None}


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _layer_index_wanted(config: SVDCoefficientConfig, name: str) -> bool:
    """Whether a layer's index is among layers_to_transform; the first index in its name counts, as for LoRA."""
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    wanted = [wanted] if isinstance(wanted, int) else wanted
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    if patterns:
        expressions = [rf"(?:.*?\.)?{pattern}\.(\d+)\." for pattern in patterns]
    else:
        expressions = [r".*?\.[^.]*\.(\d+)\.", r"[^.]*\.(\d+)\."]
    found = (re.match(expression, name) for expression in expressions)
    return next((int(match[1]) in wanted for match in found if match), False)


def _excluded(config: SVDCoefficientConfig, name: str) -> bool:
    """Whether a layer, or a module that contains it, is in exclude_modules or modules_to_save."""
    parts = name.split(".")
    ancestry = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        if any(re.fullmatch(excluded, ancestor) for ancestor in ancestry):
            return True
    elif any(_ends_with(ancestor, item) for ancestor in ancestry for item in excluded or ()):
        return True
    return any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in config.modules_to_save or ())


def _not_found(targets: object) -> str:
    return f"Target modules {targets} not found in the base model. Please check the target modules and try again."


def _nothing_left(config: SVDCoefficientConfig, found: set[str], modules: dict[str, nn.Module]) -> str:
    """PEFT's sentence for the case, and then what was counted here."""
    excluded = {name for name in modules if _excluded(config, name)}
    if excluded == set(modules):
        said = (
            "All modules were excluded. This is likely unintended. Check your `target_modules`, `exclude_modules` and "
            "`modules_to_save` configuration."
        )
    elif excluded:
        said = (
            "No modules were targeted for adaptation. This might be caused by a combination of mismatched target "
            "modules and excluded modules. Please check your `target_modules` and `exclude_modules` configuration. You "
            "may also have only targeted modules that are marked to be saved (`modules_to_save`)."
        )
    else:
        said = _not_found(config.target_modules)
    if config.layers_to_transform is not None:
        said += f" Note: You specified 'layers_to_transform': {config.layers_to_transform}."
    if config.layers_pattern is not None:
        said += f" You also specified 'layers_pattern': {config.layers_pattern}."
    limits = {name: getattr(config, name) for name in ("exclude_modules", "modules_to_save") if getattr(config, name)}
    return (
        f"{said} target_modules={_shown(config.target_modules)} leaves no layer to adapt: {len(found)} of "
        f"{len(modules)} modules matched, and none of them is left after {limits or 'no other choice'}."
    )


def _nothing_supported(target: str, matched: list[str], modules: dict[str, nn.Module]) -> str:
    reason = unsupported_reason(modules[matched[0]])
    return (
        f"Target module {modules[matched[0]]} is not supported. target_modules names {target!r}, which is "
        f"{_shown(matched)}, but nothing there can be adapted: {reason} "
        "Take it out of target_modules, or name it in exclude_modules to leave it as it is."
    )


def _close(target: str, modules: dict[str, nn.Module]) -> str:
    endings = {name.rsplit(".", 1)[-1] for name in modules} | set(modules)
    close = difflib.get_close_matches(target, sorted(e for e in endings if not e.isdigit()), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _shown(names: object) -> str:
    if isinstance(names, (set, list)):
        shown = sorted(names)
        return repr(shown) if len(shown) <= 6 else f"{shown[:6]} and {len(shown) - 6} more"
    return repr(names)


# What can be adapted


def unsupported_reason(module: nn.Module) -> str | None:
    """Say why a module cannot be adapted, as a sentence that names its type; None if it can.

    A layer that already carries our adapters can take another; its `adapts_coefficients` says so.
    """
    if getattr(module, "adapts_coefficients", False):
        return None
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, BaseTunerLayer):
        return (
            f"it already carries another adapter ({kind}), and stacking adapters of different methods is not possible."
        )
    if _is_quantised(module):
        return (
            f"it is a quantised layer ({kind}). A quantised weight has no coefficients to train and cannot take up the "
            f"change; load the model without quantisation. {_SUPPORTED_ARE}"
        )
    if not isinstance(module, SUPPORTED):
        return f"it is a {kind}. {_SUPPORTED_ARE}"
    if "weight" not in dict(module.named_parameters(recurse=False, remove_duplicate=False)):
        return (
            f"its weight is computed anew from other parameters ({kind} with a parametrisation such as weight_norm), "
            "so a change of it would be lost. Remove the parametrisation first, for instance with "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype} ({kind}). {_SUPPORTED_ARE}"
    standard = next(cls for cls in SUPPORTED if isinstance(module, cls))
    if type(module).forward is not standard.forward:
        return f"it is a {kind}, which computes its output in a way of its own. {_SUPPORTED_ARE}"
    return None


def _is_quantised(module: nn.Module) -> bool:
    """Layers of bitsandbytes are subclasses of nn.Linear and some report a floating-point weight: go by the name."""
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__]
    return any(name.startswith("bitsandbytes.") or name.endswith((".Linear4bit", ".Linear8bitLt")) for name in names)


# Weights that accelerate keeps on the CPU or on disk and lends to their layer for each forward pass: such a layer
# cannot be adapted, as its weight has to be split before the first pass, and changed in every one.


def refuse_offloaded(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose weights accelerate has offloaded.

    Raises:
        ValueError: Some of the layers have no weight in memory; the message names them and the way out.
    """
    offloaded = [name for name in names if _is_offloaded(model, name)]
    if offloaded:
        more = f" and {len(offloaded) - 4} more" if len(offloaded) > 4 else ""
        raise ValueError(
            f"Cannot adapt {', '.join(offloaded[:4])}{more}: accelerate keeps the weight on the CPU or on disk until "
            f"the layer runs, and its coefficients need it in memory. {_KEEP_IN_MEMORY}"
        )


def without_values(name: str, base: nn.Module) -> str:
    """Say what is wrong when a layer is to compute and its base weight has no values."""
    if _lends_weights(base):
        return (
            f"{name}: accelerate offloaded the weight to the CPU or to disk after the layer was adapted, and an "
            f"adapted layer needs it in memory. {_KEEP_IN_MEMORY}"
        )
    return (
        f"{name}: the base weight is on the meta device and has no values. Load the base model's weights first, for "
        "instance with load_state_dict(..., assign=True)."
    )


def _is_offloaded(model: nn.Module, name: str) -> bool:
    """Whether a layer's weight is absent because the layer, or a module that contains it, has an offloading hook."""
    layer = model.get_submodule(name)
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    parts = name.split(".")
    holders = [base, *(model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))]
    weight = base.weight
    return isinstance(weight, Tensor) and weight.is_meta and any(map(_lends_weights, holders))


def _lends_weights(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,)))
