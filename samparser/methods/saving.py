"""Saves what a method trained to a folder, whole or not at all; `folder` says which files that are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from samparser._files import filling_folder, no_folder
from samparser.sam.frame_choice import chosen_frame
from samparser.sam.wrapped import plain_model
from samparser.tuner import SVDCoefficientConfig
from samparser.tuner.config import COMPILED

from .base_check import fingerprint, frozen_tensors, weight_dtype
from .card import write_card
from .folder import METHOD_FILE, PEFT_CONFIG, TENSOR_FILE, MethodFile
from .registry import AppliedMethod, applied_method

# PEFT methods that compare the base and their own weights with what was saved when they are loaded.
_CHECKED_BY_PEFT = {"SVD_COEFFICIENT"}


def save_trained(model: nn.Module, folder: str | Path) -> None:
    """Save what the model's method trained, and nothing of the base model.

    The files are written aside and moved into place, so an interrupted call leaves an earlier save as it was. Wrappers
    of data-parallel training and of torch.compile are looked through.

    Raises:
        ValueError: The model comes from no method and carries no PEFT adapter; or the folder holds the trained part of
            a model saved in the other format.
        NotADirectoryError: `folder` is a file.
    """
    folder = Path(folder)
    model = _unwrapped(model)
    applied = applied_method(model)
    is_peft = isinstance(model, PeftModel)
    if applied is None and not is_peft:
        raise ValueError(
            f"This {type(model).__name__} comes from no method and carries no PEFT adapter, so there is no telling "
            f"what was trained. Use samparser.methods.build(), or save the whole model with save_pretrained()."
        )
    if reason := no_folder(folder):
        raise NotADirectoryError(f"{reason}; name a folder to save the trained part in.")
    other = TENSOR_FILE if is_peft else PEFT_CONFIG
    if (folder / other).exists():
        raise ValueError(
            f"{folder} already holds {other}, the trained part of another method. Choose another folder, or remove it."
        )
    with filling_folder(folder, last=(PEFT_CONFIG, METHOD_FILE)) as stage:
        if applied is not None:  # first: the card reads it
            _method_file(model, applied).write(stage)
        if is_peft:
            if (folder / "README.md").is_file():  # PEFT carries on the card that it finds
                shutil.copyfile(folder / "README.md", stage / "README.md")
            cast(Any, model).save_pretrained(stage, save_embedding_layers=False)
            for name, config in cast(Any, model).peft_config.items():
                if isinstance(config, SVDCoefficientConfig):
                    write_card(stage if name == "default" else stage / name)
        elif tensors := trained_tensors(model):
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, stage / TENSOR_FILE, metadata={"format": "pt"})


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that would be saved, by the name they have in the file."""
    if isinstance(model, PeftModel):
        return get_peft_model_state_dict(model, save_embedding_layers=False)
    applied = applied_method(model)
    if applied is None:
        return {}
    state = model.state_dict(keep_vars=True)
    return {name: state[name] for name in applied.trained}


def _method_file(model: nn.Module, applied: AppliedMethod) -> MethodFile:
    plain = plain_model(model)
    peft_types = {str(config.peft_type.value) for config in getattr(model, "peft_config", {}).values()}
    base = trained = None
    if not peft_types & _CHECKED_BY_PEFT:
        base = {"dtype": weight_dtype(plain), "weights": fingerprint(frozen_tensors(model, applied.trained))}
        trained = fingerprint(trained_tensors(model))
    name = getattr(plain, "name_or_path", None) or None
    return MethodFile(applied.name, applied.options, name, base, trained, chosen_frame(plain))


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif compiled := dict(model.named_children()).get(COMPILED.removesuffix(".")):
            model = compiled
        else:
            return model
