"""Writes what a method trained to a folder, whole or not at all, and puts it back on a base model.

A model of PEFT is saved as PEFT's own files. Any other method leaves `trained.safetensors`, the tensors that differ
from the base. Beside either stands `method.json`: the method, its options, the base's name and, where the format has
no check of its own, the hashes of the base's frozen weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samparser._version import __version__

from .base_check import check_base as check_base_weights
from .base_check import fingerprint, frozen_tensors, weight_dtype
from .registry import METHODS, Recipe, build, recipe_of, refuse_tuned, set_recipe

METHOD_FILE = "method.json"
TENSOR_FILE = "trained.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
_FORMAT = 1
# Adapters that compare the base with what they were trained on when they are loaded.
_CHECKED_BY_PEFT_TYPE = {"SVD_COEFFICIENT"}


def save_trained(model: nn.Module, folder: str | Path) -> None:
    """Saves what the model's method trained, and nothing of the base model.

    The files are written aside and moved into place, so an interrupted call leaves an earlier save as it was. Wrappers
    of data-parallel training and of torch.compile are looked through.

    Raises:
        ValueError: The model comes from no method and carries no PEFT adapter; or the folder holds the trained part of
            a model saved in the other format.
        NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    model = _unwrapped(model)
    recipe = recipe_of(model)
    is_peft = isinstance(model, PeftModel)
    if recipe is None and not is_peft:
        raise ValueError(
            f"This {type(model).__name__} comes from no method and carries no PEFT adapter, so there is no telling "
            f"what was trained. Use samparser.methods.build(), or save the whole model with save_pretrained()."
        )
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder to save the trained part in.")
    other = TENSOR_FILE if is_peft else PEFT_CONFIG
    if (folder / other).exists():
        raise ValueError(
            f"{folder} already holds {other}, the trained part of another method. Choose another folder, or remove it."
        )
    with _staged(folder) as stage:
        if is_peft:
            if (folder / "README.md").is_file():  # PEFT carries on the card that it finds.
                shutil.copyfile(folder / "README.md", stage / "README.md")
            cast(Any, model).save_pretrained(stage, save_embedding_layers=False)
        elif tensors := trained_tensors(model):
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, stage / TENSOR_FILE, metadata={"format": "pt"})
        if recipe is not None:
            text = json.dumps(_method_card(model, recipe), indent=1) + "\n"
            (stage / METHOD_FILE).write_text(text, encoding="utf-8")


def load_trained(
    base_model: nn.Module, folder: str | Path, *, trainable: bool = False, check_base: bool = True
) -> nn.Module:
    """Puts a saved trained part on its base model, bit for bit, and returns the tuned model.

    The base model is changed in place; use what is returned. It comes back frozen and in eval mode, or with
    `trainable` ready to be trained on.

    Args:
        base_model: The plain model the part was trained on.
        folder: A folder that `save_trained`, or PEFT's `save_pretrained`, wrote.
        trainable: Whether the loaded part is to be trained further.
        check_base: Whether to refuse a base whose frozen weights are not those of the training (the comparison takes
            about a second for ViT-B). Adapters of coefficients compare the weights they change, and with False warn.

    Raises:
        FileNotFoundError: The folder does not exist or holds no trained part.
        ValueError: The base is another one, the method is unknown, or the files are incomplete or do not fit.
    """
    folder = Path(folder)
    refuse_tuned(base_model, f"loading {folder}")
    kind = trained_kind(folder)
    card = read_method_card(folder)
    if check_base and card and card.get("base"):
        check_base_weights(base_model, {**card["base"], "name": card.get("base_model")}, folder)
    if kind == "peft":
        return _load_peft(base_model, folder, card, trainable, check_base)
    assert card is not None, "a folder of this kind is recognised by its method.json"
    return _load_tensors(base_model, folder, card, trainable)


def trained_kind(folder: Path) -> str:
    """`"peft"` or `"tensors"`: in which format the folder holds a trained part.

    Raises:
        FileNotFoundError: The folder does not exist or holds neither.
        ValueError: It holds a PEFT adapter in a file that is not safetensors, or without its weights.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if (folder / PEFT_CONFIG).is_file():
        if not (folder / PEFT_TENSORS).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            raise ValueError(
                f"{folder} has {PEFT_CONFIG} but no {PEFT_TENSORS}"
                + (
                    "; adapter_model.bin is a pickle, which is not read. Save it again as safetensors."
                    if pickled
                    else ": it is incomplete. Copy the whole folder, or save the adapter again."
                )
            )
        return "peft"
    if (folder / METHOD_FILE).is_file():
        return "tensors"
    content = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    nested = sorted(path.parent for name in (PEFT_CONFIG, METHOD_FILE) for path in folder.glob(f"*/{name}"))
    raise FileNotFoundError(
        f"{folder} holds no trained part: neither {PEFT_CONFIG} nor {METHOD_FILE}. It holds {content}."
        + (f" Did you mean {nested[0]}?" if nested else "")
    )


def read_peft_config(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    Raises:
        ValueError: It is not JSON, or names no PEFT method.
    """
    path = folder / PEFT_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy the adapter again, or save it again.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{path} names no peft_type: it is not a configuration of PEFT, or is damaged.")
    return config


def read_method_card(folder: Path) -> dict[str, Any] | None:
    """The content of `method.json`, or None where a folder has none, as with adapters saved by PEFT alone."""
    path = folder / METHOD_FILE
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Save the trained part again.") from error
    missing = {"format", "method", "options"} - set(card if isinstance(card, dict) else ())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by samparser, or is damaged.")
    if card["format"] > _FORMAT:
        raise ValueError(
            f"{path} has format {card['format']}, written by samparser {card.get('samparser')}; this is samparser "
            f"{__version__}, which reads up to format {_FORMAT}. Install a newer samparser."
        )
    if card["method"] not in METHODS:
        raise ValueError(
            f"{folder} was trained with method {card['method']!r}, which is not registered. Import the module that "
            f"defines it first; known are {', '.join(METHODS)}."
        )
    return card


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that would be saved, by the name they have in the file."""
    if isinstance(model, PeftModel):
        return get_peft_model_state_dict(model, save_embedding_layers=False)
    recipe = recipe_of(model)
    if recipe is None:
        return {}
    state = model.state_dict(keep_vars=True)
    return {name: state[name] for name in recipe.trained}


def _method_card(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    card: dict[str, Any] = {
        "format": _FORMAT,
        "samparser": __version__,
        "method": recipe.method,
        "options": recipe.options,
        "base_model": base_name(model),
    }
    peft_types = {str(config.peft_type.value) for config in getattr(model, "peft_config", {}).values()}
    if not peft_types & _CHECKED_BY_PEFT_TYPE:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        card["base"] = {
            "dtype": weight_dtype(plain),
            "weights": fingerprint(frozen_tensors(model, recipe.trained)),
        }
    return card


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):  # what torch.compile returns
            model = inner
        else:
            return model


def base_name(model: nn.Module) -> str | None:
    """The name or path that the base model was loaded from, where it is known."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(plain, "name_or_path", None) or None


def _load_peft(
    base_model: nn.Module, folder: Path, card: dict[str, Any] | None, trainable: bool, check_base: bool
) -> nn.Module:
    read_peft_config(folder)
    with _readable(folder / PEFT_TENSORS), safe_open(folder / PEFT_TENSORS, "pt") as file:
        saved = set(file.keys())
    config = PeftConfig.from_pretrained(str(folder))
    for name in getattr(config, "modules_to_save", None) or ():
        if not any(f".{name}." in f".{key}" for key in saved):
            raise ValueError(
                f"{folder / PEFT_TENSORS} lacks the weights of {name!r}, which {PEFT_CONFIG} says were trained: the "
                f"masks would come from an untrained {name}. Copy the whole adapter, or save it again."
            )
    if not check_base and hasattr(config, "base_check"):
        config.base_check = "warn"
    model = PeftModel.from_pretrained(base_model, str(folder), config=config, is_trainable=True)
    expected = set(trained_tensors(model))
    if expected != saved:
        raise ValueError(
            f"{folder / PEFT_TENSORS} does not fit its configuration: {_difference(expected, saved)}. The adapter is "
            f"incomplete, or the base model is not the one it was trained on; load that one afresh."
        )
    trained = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if card is not None:
        set_recipe(model, Recipe(card["method"], card["options"], trained))
    if not trainable:
        model.requires_grad_(False).eval()
        model.active_peft_config.inference_mode = True
    return model


def _load_tensors(base_model: nn.Module, folder: Path, card: dict[str, Any], trainable: bool) -> nn.Module:
    path = folder / TENSOR_FILE
    with _readable(path):
        tensors = load_file(path) if path.is_file() else {}
    model = build(card["method"], base_model, **card["options"])
    mine = trained_tensors(model)
    if mine.keys() != tensors.keys():
        raise ValueError(
            f"{path} does not fit method {card['method']!r}: {_difference(set(mine), set(tensors))}. The file is "
            f"incomplete, or the base model is not the one it was trained on; load that one afresh."
        )
    for name, tensor in tensors.items():
        if tensor.shape != mine[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in {path} and {tuple(mine[name].shape)} in this model: the "
                f"base is another one. Load the base model it was trained on."
            )
    model.load_state_dict(tensors, strict=False)
    return model if trainable else model.requires_grad_(False).eval()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Says which file it is when safetensors cannot read one."""
    try:
        yield
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is damaged or cut off: {error}. Copy the whole folder again, or save it again."
        ) from error


def _difference(expected: set[str], found: set[str]) -> str:
    parts = [
        f"{len(names)} {word} (first {min(names)})"
        for names, word in ((expected - found, "tensors missing"), (found - expected, "tensors too many"))
        if names
    ]
    return " and ".join(parts)


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder to write to beside `folder`; its files move into `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        if not folder.exists():
            stage.rename(folder)
            return
        # Weights first and the files that a folder is recognised by last.
        for source in sorted(stage.rglob("*"), key=lambda path: (path.suffix == ".json", path.name == METHOD_FILE)):
            if source.is_file():
                target = folder / source.relative_to(stage)
                target.parent.mkdir(exist_ok=True)
                os.replace(source, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
