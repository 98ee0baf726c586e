"""Adapter file: the check of a saved adapter's tensors before any of them reaches a model."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samparser._words import shortened

from .base_record import check_record, decode
from .choices import chosen_terms
from .config import COMPILED, EMBEDDINGS, PREFIX, AdapterSource, SVDCoefficientConfig, hash_of_weights

_ROOT = "base_model.model."
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_adapter_file(config: SVDCoefficientConfig, source: AdapterSource, model: nn.Module) -> None:
    """Check the file of a saved adapter before it is loaded: the one that was saved, complete, of fitting shapes.

    The adapter's own tensors are compared with its configuration, those of modules_to_save and biases with the model.
    Nothing happens where only a configuration was saved, before any adapter was made from it.

    Args:
        config: The configuration beside the file.
        source: Where the file lies.
        model: The plain model, or one that other adapters wrap by now.

    Raises:
        ValueError: The file is missing, damaged or does not belong to the configuration. The message says what was
            found.
    """
    for layer, record in (config.base_record or {}).items():
        check_record(layer, record)
    _check_terms(config)
    path = _weights_file(source)
    if path is None:
        if config.base_record:
            raise ValueError(
                f"{Path(source.name, source.subfolder or '')} holds no {SAFETENSORS_WEIGHTS_NAME}, but its "
                "adapter_config.json is that of a trained adapter. Fetch the file too; to make a new adapter of the "
                "same choices, set base_record=None in the configuration. The model was left as it was."
            )
        return
    tensors = _read(path)
    # Only the first kind is told: where names are wrong, shapes say nothing, and where shapes are, values do not.
    problems = (
        _missing_and_unknown(config, tensors, model)
        or _wrong_shapes(config, tensors)
        or _compare(tensors, _others_in(model, tensors))
        or _not_finite(tensors)
    )
    if problems:
        raise ValueError(f"{path} does not fit its adapter_config.json: {problems} The model was left as it was.")
    found = hash_of_weights(tensors)
    if config.weights_sha256 is not None and found != config.weights_sha256:
        raise ValueError(
            f"{path} is not the file that was saved with its adapter_config.json: the hash of its names and values is "
            f"{found}, and weights_sha256 says {shortened([config.weights_sha256])}. Some value changed since, in a "
            "copy, a download or by hand; fetch the adapter again. If it was edited on purpose, read the configuration "
            "with SVDCoefficientConfig.from_pretrained and save it with save_pretrained into the same folder: that "
            "takes the hash anew (samparser.methods.load_model with check_weights=False, and the command line with "
            "--check_weights false, use it as it is). The model was left as it was."
        )


def _check_terms(config: SVDCoefficientConfig) -> None:
    layers, terms = set(config.base_record or ()), set(config.expansion_record or ())
    if terms - layers:
        raise ValueError(
            f"adapter_config.json in {source_name(config)} has terms for {shortened(sorted(terms - layers), 4)} in its "
            "expansion_record, and no such layer in its base_record. Was it edited?"
        )
    for layer in sorted(terms):
        chosen_terms(config, layer)


def _weights_file(source: AdapterSource) -> Path | None:
    """Find the file of the adapter, downloaded if need be; None where the adapter has none."""
    for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME):
        if source.folder.is_dir():
            path = source.folder / name
            if path.exists():
                return path
            continue
        try:
            return Path(hf_hub_download(source.name, name, subfolder=source.subfolder, **source.download))
        except LocalEntryNotFoundError:  # Offline and not downloaded before: whether there is one cannot be told.
            raise
        except EntryNotFoundError:
            continue
    return None


def _read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, on the CPU."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, dict) and all(isinstance(tensor, Tensor) for tensor in found.values()):
            return found
        raise ValueError("it holds no tensors by name")
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        size = f"{path.stat().st_size} bytes" if path.is_file() else "not a file"
        raise ValueError(
            f"{path} ({size}) is not a readable {path.suffix.removeprefix('.')} file: {error}. It was probably copied "
            "or downloaded in part; fetch it again. The model was left as it was."
        ) from error


def check_layers(config: SVDCoefficientConfig, names: Iterable[str]) -> None:
    """Check that the layers to adapt are those that a saved adapter has.

    Raises:
        ValueError: A layer of the adapter is left out, or one that it does not have is among them.
    """
    here, saved = set(names), set(config.base_record or ())
    if not saved or here == saved or config._source is None:
        return
    left_out, new = sorted(saved - here), sorted(here - saved)
    said = [f"it leaves out {shortened(left_out, 4)}"] if left_out else []
    said += [f"it adds {shortened(new, 4)}"] if new else []
    raise ValueError(
        f"adapter_config.json in {source_name(config)} does not fit its adapter: with target_modules, exclude_modules "
        f"and modules_to_save as they stand there, {' and '.join(said)}, against base_record. Were they edited? The "
        "model was left as it was."
    )


def source_name(config: SVDCoefficientConfig) -> str:
    """Where a configuration was read from, for messages."""
    source = config._source
    return "this configuration" if source is None else str(Path(source.name, source.subfolder or ""))


def check_tensors(given: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
    """Check tensors for a model against those that it has, both named as in its state dict.

    Raises:
        ValueError: A coefficient belongs to no layer, has another shape or is not finite.
    """
    own = {name: tensor for name, tensor in given.items() if f".{PREFIX}" in name}
    unknown = sorted(set(own) - set(present))
    if unknown:
        raise ValueError(f"The model has no place for {shortened(unknown, 4)}. No value of it was changed.")
    problems = _compare(own, {name: present[name] for name in own}) or _not_finite(own)
    if problems:
        raise ValueError(f"These coefficients cannot be loaded: {problems} No value of the model was changed.")


def _missing_and_unknown(config: SVDCoefficientConfig, names: Iterable[str], model: nn.Module) -> str:
    layers = config.base_record or ()
    if not layers:
        return ""
    exact, plain = set(names), {name.replace(COMPILED, "") for name in names}
    expected = {f"{_ROOT}{layer}.{part}" for layer in layers for part in _parts(config, layer)}
    whole = set(_in_modules_to_save(config, model))
    biases = {name for name in plain if config.bias != "none" and name.endswith(".bias")}
    embeddings = {name for name in plain if EMBEDDINGS & set(name.split("."))}
    # PEFT looks for what belongs to modules_to_save under the very names that the model has.
    missing = sorted((expected - plain) | (whole - exact))
    unknown = sorted(plain - expected - {name.replace(COMPILED, "") for name in whole} - biases - embeddings)
    said = [f"it lacks {shortened(missing, 4)}"] if missing else []
    if unknown:
        said.append(f"it holds {shortened(unknown, 4)}, which the configuration does not know")
    if any(name.replace(COMPILED, "") in plain for name in missing):
        said.append(
            "its module was compiled: load into the plain model, then compile it in place with module.compile()"
        )
    return "; ".join(said) + "." if said else ""


def _parts(config: SVDCoefficientConfig, layer: str) -> list[str]:
    """The kinds of tensors that a layer of such an adapter has."""
    bases = [f"{PREFIX}u", f"{PREFIX}vh"] if config.has_own_bases else []
    coefficients = [f"{PREFIX}p" if config.parametrization == "absolute" else f"{PREFIX}d"]
    parts = bases if config.trainable in ("bases", "expansion") else coefficients + bases
    terms = None if config.expansion is None else chosen_terms(config, layer)
    if terms is not None and terms.count:
        parts += [f"{PREFIX}c", *([f"{PREFIX}a", f"{PREFIX}b"] if terms.stored else [])]
    return parts


def _in_modules_to_save(config: SVDCoefficientConfig, model: nn.Module) -> Iterator[str]:
    """The names that the tensors of modules_to_save have in the file: those of the modules of the model itself."""
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(name.endswith(saved) for saved in config.modules_to_save or ()):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        for key in module.state_dict():
            yield f"{_ROOT}{name}.{key}"


def _wrong_shapes(config: SVDCoefficientConfig, tensors: Mapping[str, Tensor]) -> str:
    plain = {name.replace(COMPILED, ""): tensor for name, tensor in tensors.items()}
    for layer, record in (config.base_record or {}).items():
        rows, columns = record["shape"][0], math.prod(record["shape"][1:])
        full = min(rows, columns)
        rank = config.leading(layer, full)
        if "origin" in record and len(decode(record["origin"])) != rank:
            return f"{layer} has {rank} coefficients, but {len(decode(record['origin']))} as its origin in base_record."
        name = f"{_ROOT}{layer}.{PREFIX}"
        u = plain.get(f"{name}u")
        if u is not None and len(record["shape"]) == 2 and len(u) == columns:
            rows, columns = columns, rows  # A weight that is stored as (in, out), as transformers' Conv1D has it.
        shapes = {"p": (rank,), "d": (rank,), "u": (rows, rank), "vh": (rank, columns)}
        terms = None if config.expansion is None else chosen_terms(config, layer, full)
        if terms is not None:
            n, stored = terms.count, terms.stored
            a = plain.get(f"{name}a")
            if a is not None and len(record["shape"]) == 2 and len(a) == columns:
                rows, columns = columns, rows
            shapes |= {"c": (n,), "a": (rows, stored), "b": (stored, columns)}
        expected = {f"{name}{kind}": torch.empty(shape, device="meta") for kind, shape in shapes.items()}
        if problem := _compare({key: plain[key] for key in expected if key in plain}, expected):
            return problem
    return ""


def _others_in(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Those tensors of the model that are none of ours; embeddings may have been resized."""
    present = {}
    for name in names:
        if f".{PREFIX}" not in name and not EMBEDDINGS & set(name.split(".")):
            tensor = _find(model, name.removeprefix(_ROOT))
            if tensor is not None:
                present[name] = tensor
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


def _compare(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """A sentence on the first tensor whose shape or kind of number is another; empty when there is none."""
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if tensor.shape != expected[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, but {tuple(expected[name].shape)} is needed."
        if expected[name].is_floating_point() and tensor.dtype not in _DTYPES:
            return f"{name} is {tensor.dtype}, but floating-point numbers of 16, 32 or 64 bits are needed."
        if not expected[name].is_floating_point() and tensor.dtype != expected[name].dtype:
            return f"{name} is {tensor.dtype}, but {expected[name].dtype} is needed."
    return ""


def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """A sentence on the first tensor that holds NaN or infinite values; empty when there is none."""
    for name, tensor in tensors.items():
        broken = int((~tensor.isfinite()).sum()) if tensor.dtype in _DTYPES and not tensor.is_meta else 0
        if broken:
            return f"{name} holds {broken} of {tensor.numel()} values that are NaN or infinite; training diverged."
    return ""
