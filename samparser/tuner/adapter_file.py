"""Adapter file: the check of a saved adapter's tensors before any of them reaches a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import PREFIX, AdapterSource, SVDCoefficientConfig


def check_adapter_file(config: SVDCoefficientConfig, source: AdapterSource, model: nn.Module) -> None:
    """Check the file of a saved adapter before it is loaded: readable, complete, finite and of fitting shapes.

    The adapter's own tensors are compared with its configuration, those of modules_to_save and biases with the model.
    Nothing happens where there is no safetensors file, as where only the configuration was saved.

    Args:
        config: The configuration beside the file.
        source: Where the file lies.
        model: The plain model, or one that other adapters wrap by now.

    Raises:
        ValueError: The file is damaged or does not belong to the configuration. The message says what was found.
    """
    path = source.weights()
    if path is None:
        return
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a readable safetensors file: {error}. It was probably copied "
            "or downloaded in part; fetch it again. The model was left as it was."
        ) from error
    # Only the first kind is told: where names are wrong, shapes say nothing, and where shapes are, values do not.
    problems = (
        _missing_and_unknown(config, tensors)
        or _wrong_shapes(config, tensors)
        or _compare_shapes(tensors, _shapes_of_others(model, tensors))
        or _not_finite(tensors)
    )
    if problems:
        raise ValueError(f"{path} does not fit its adapter_config.json: {problems} The model was left as it was.")


def check_tensors(given: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Check tensors for a model against those that it has, both named as in its state dict.

    Raises:
        ValueError: A coefficient belongs to no layer, has another shape or is not finite.
    """
    own = {name: tensor for name, tensor in given.items() if f".{PREFIX}" in name}
    unknown = sorted(set(own) - set(present))
    if unknown:
        raise ValueError(f"The model has no place for {_listed(unknown)}. No value of it was changed.")
    shapes = {name: tuple(present[name].shape) for name in own}
    problems = _compare_shapes(own, shapes) or _not_finite(own)
    if problems:
        raise ValueError(f"These coefficients cannot be loaded: {problems} No value of the model was changed.")


def _missing_and_unknown(config: SVDCoefficientConfig, names: Iterable[str]) -> str:
    own = {name for name in names if f".{PREFIX}" in name}
    others = {name for name in names if name not in own and not _may_be_saved(config, name)}
    expected = {f"base_model.model.{layer}.{part}" for layer in config.base_record or () for part in _parts(config)}
    if not expected:
        return ""
    missing, unknown = sorted(expected - own), sorted((own - expected) | others)
    said = []
    if missing:
        said.append(f"it lacks {_listed(missing)}")
    if unknown:
        said.append(f"it holds {_listed(unknown)}, which the configuration does not know")
    return "; ".join(said) + "." if said else ""


def _parts(config: SVDCoefficientConfig) -> list[str]:
    """The kinds of tensors that a layer of such an adapter has."""
    bases = [f"{PREFIX}u", f"{PREFIX}vh"] if config.save_basis or config.trainable != "coefficients" else []
    coefficients = [f"{PREFIX}d" if config.parametrization == "relative" else f"{PREFIX}p"]
    return bases if config.trainable == "bases" else coefficients + bases


def _may_be_saved(config: SVDCoefficientConfig, name: str) -> bool:
    """Whether a tensor that is none of ours may be in the file: modules_to_save, biases, resized embeddings."""
    if config.bias != "none" and name.endswith(".bias"):
        return True
    saved = [*(config.modules_to_save or ()), *EMBEDDING_LAYER_NAMES]
    return any(re.search(rf"(^|\.){module}\.", name) for module in saved)


def _wrong_shapes(config: SVDCoefficientConfig, tensors: Mapping[str, Tensor]) -> str:
    expected: dict[str, tuple[int, ...]] = {}
    for layer, record in (config.base_record or {}).items():
        rows, columns = record["shape"][0], math.prod(record["shape"][1:])
        pattern = get_pattern_key(config.rank_pattern.keys(), layer)
        full = min(rows, columns)
        rank = min(config.rank_pattern.get(pattern, config.rank) or full, full)
        name = f"base_model.model.{layer}.{PREFIX}"
        u = tensors.get(f"{name}u")
        if u is not None and len(record["shape"]) == 2 and len(u) == columns:
            rows, columns = columns, rows  # A weight that is stored as (in, out), as transformers' Conv1D has it.
        expected |= {f"{name}p": (rank,), f"{name}d": (rank,), f"{name}u": (rows, rank), f"{name}vh": (rank, columns)}
    return _compare_shapes(tensors, expected)


def _shapes_of_others(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes in the model of those tensors that are none of ours; embeddings may have been resized."""
    present = {}
    for name in names:
        if f".{PREFIX}" not in name and not any(f".{layer}." in name for layer in EMBEDDING_LAYER_NAMES):
            tensor = _find(model, name.removeprefix("base_model.model."))
            if tensor is not None:
                present[name] = tuple(tensor.shape)
    return present


def _find(model: nn.Module, name: str) -> Tensor | None:
    """A tensor of the plain model by its name in an adapter's file, whether or not adapters wrap it by now."""
    at: Any = model
    for part in name.split("."):
        if isinstance(at, AuxiliaryTrainingWrapper):
            at = at.original_module
        if isinstance(at, BaseTunerLayer) and part != "base_layer":
            at = at.get_base_layer()
        at = getattr(at, part, at if part == "base_layer" else None)
    return at if isinstance(at, Tensor) else None


def _compare_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> str:
    for name, tensor in tensors.items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            return f"{name} has shape {tuple(tensor.shape)}, but {expected[name]} is needed."
    return ""


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """A sentence on the first tensor that holds NaN or infinite values; empty when there is none."""
    for name, tensor in tensors.items():
        broken = int((~tensor.isfinite()).sum()) if not tensor.is_meta else 0
        if broken:
            return f"{name} holds {broken} of {tensor.numel()} values that are NaN or infinite; training diverged."
    return ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
