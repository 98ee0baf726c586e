"""Opens whatever a user has: a base model, a merged model, or a folder with a trained part."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from torch import nn
from transformers import SamProcessor

from samparser.sam import load_sam

from .saving import (
    METHOD_FILE,
    PEFT_CONFIG,
    PEFT_TENSORS,
    TENSOR_FILE,
    load_trained,
    read_method_card,
    read_peft_config,
    trained_kind,
)


def load_model(
    path: str | Path, base: str | Path | None = None, *, check_base: bool = True
) -> tuple[nn.Module, SamProcessor]:
    """Loads a model that is ready to predict, and the processor of its base.

    Args:
        path: A model (a folder with `config.json`), or a folder that `save_trained` or PEFT wrote; or the name of
            either on the Hugging Face hub, such as `"facebook/sam-vit-base"` or `"name/sam-nuclei"`. A name that
            exists as a folder is read from there. Of a hub repository, no pickle is fetched.
        base: The base model of a trained part. Not given, it is read from the folder.
        check_base: As for `load_trained`.

    Raises:
        FileNotFoundError: The folder holds neither a model nor a trained part, or the base is not there.
        ValueError: A base is given for a whole model, or none is known for a trained part; or the trained part is
            incomplete or belongs to another base.
        OSError: The hub could not be reached, or has no such repository.
    """
    folder = trained_folder(path)
    if folder is None:
        if base is not None:
            raise ValueError(f"{path} is a whole model, so base={str(base)!r} has no use. Leave it out.")
        return load_sam(path)
    kind = trained_kind(folder)
    name = str(base) if base is not None else _recorded_base(folder, kind)
    if not name:
        raise ValueError(
            f"{folder} does not say which base model it was trained on. Give it: base='facebook/sam-vit-base', or the "
            f"folder of the base."
        )
    try:
        model, processor = load_sam(name)
    except (OSError, ValueError) as error:
        if base is not None:
            raise
        raise type(error)(
            f"{folder} was trained on {name!r}, which cannot be loaded: {error} If the base is elsewhere now, give it "
            f"as base."
        ) from error
    return load_trained(model, folder, check_base=check_base), processor


def trained_folder(path: str | Path) -> Path | None:
    """The local folder of a trained part, fetched from the hub where `path` is a name there; None for a whole model.

    What is no folder and can be no name on the hub counts as a whole model: `load_sam` explains what is wrong with it.

    Raises:
        OSError: The hub could not be reached, or has no such repository.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else folder
    # A trained part is pushed under a name like "owner/name"; anything else never was one.
    name = str(path)
    if folder.exists() or len(name.split("/")) != 2 or name.startswith((".", "~", "/")):
        return None
    try:
        fetched = Path(
            snapshot_download(name, allow_patterns=[PEFT_CONFIG, PEFT_TENSORS, METHOD_FILE, TENSOR_FILE, "README.md"])
        )
    except ValueError:  # not a valid name: load_sam says so
        return None
    except OSError as error:
        raise OSError(
            f"{path} is no local folder, and could not be fetched from the Hugging Face hub: {error} Check the "
            f"spelling and the connection; private and gated repositories need `hf auth login`. Offline (or with "
            f"HF_HUB_OFFLINE=1) give the folder of a download instead."
        ) from error
    return fetched if any((fetched / name).is_file() for name in (PEFT_CONFIG, METHOD_FILE)) else None


def _recorded_base(folder: Path, kind: str) -> str | None:
    if kind == "peft":
        return read_peft_config(folder).get("base_model_name_or_path")
    card = read_method_card(folder)
    return card.get("base_model") if card else None
