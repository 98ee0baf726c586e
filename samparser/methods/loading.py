"""Opens whatever a user has: a base model, a merged model, or a folder with a trained part, which goes on its base."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import SamProcessor

from samparser.sam import load_sam

from .base_check import check_base as check_base_weights
from .folder import METHOD_FILE, PEFT_CONFIG, PEFT_TENSORS, TENSOR_FILE, MethodFile, format_of, read_peft_config
from .registry import AppliedMethod, build, refuse_tuned, set_applied_method
from .saving import trained_tensors


def load_model(
    path: str | Path, base: str | Path | None = None, *, check_base: bool = True
) -> tuple[nn.Module, SamProcessor]:
    """Load a model that is ready to predict, and the processor of its base.

    Args:
        path: A model (a folder with `config.json`), or a folder that `save_trained` or PEFT wrote; or the name of
            either on the Hugging Face hub, such as `"facebook/sam-vit-base"` or `"name/sam-nuclei"`. A name that
            exists as a folder is read from there. Of a hub repository, no pickle is fetched.
        base: The base model of a trained part. Not given, it is read from the folder.
        check_base: As for `load_trained`.

    Returns:
        Model and processor.

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
    name = str(base) if base is not None else _recorded_base(folder)
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


def load_trained(
    base_model: nn.Module, folder: str | Path, *, trainable: bool = False, check_base: bool = True
) -> nn.Module:
    """Put a saved trained part on its base model, bit for bit.

    The base model is changed in place; use what is returned. It comes back frozen and in eval mode, or with
    `trainable` ready to be trained on.

    Args:
        base_model: The plain model the part was trained on.
        folder: A folder that `save_trained`, or PEFT's `save_pretrained`, wrote.
        trainable: Whether the loaded part is to be trained further.
        check_base: Whether to refuse a base whose frozen weights are not those of the training (the comparison takes
            about a second for ViT-B). Adapters of coefficients compare the weights they change, and with False warn.

    Returns:
        The tuned model.

    Raises:
        FileNotFoundError: The folder does not exist or holds no trained part.
        ValueError: The base is another one, the method is unknown, or the files are incomplete or do not fit.
    """
    folder = Path(folder)
    refuse_tuned(base_model, f"loading {folder}")
    is_peft = format_of(folder) == "peft"
    saved = MethodFile.read(folder)
    if check_base and saved is not None and saved.base:
        check_base_weights(base_model, {**saved.base, "name": saved.base_model}, folder)
    if is_peft:
        return _load_peft(base_model, folder, saved, trainable, check_base)
    assert saved is not None, "a folder of this format is recognised by its method.json"
    return _load_tensors(base_model, folder, saved, trainable)


def trained_folder(path: str | Path) -> Path | None:
    """Return the local folder of a trained part, fetched from the hub where `path` is a name there.

    Returns:
        None for a whole model. What is no folder and can be no name on the hub counts as one: `load_sam` explains what
        is wrong with it.

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


def _recorded_base(folder: Path) -> str | None:
    if format_of(folder) == "peft":
        return read_peft_config(folder).get("base_model_name_or_path")
    saved = MethodFile.read(folder)
    return saved.base_model if saved else None


def _load_peft(
    base_model: nn.Module, folder: Path, method_file: MethodFile | None, trainable: bool, check_base: bool
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
    _refuse_difference(trained_tensors(model).keys(), saved, f"{folder / PEFT_TENSORS} does not fit its configuration")
    trained = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    if method_file is not None:
        set_applied_method(model, AppliedMethod(method_file.method, method_file.options, trained))
    if not trainable:
        model.requires_grad_(False).eval()
        model.active_peft_config.inference_mode = True
    return model


def _load_tensors(base_model: nn.Module, folder: Path, method_file: MethodFile, trainable: bool) -> nn.Module:
    path = folder / TENSOR_FILE
    with _readable(path):
        tensors = load_file(path) if path.is_file() else {}
    model = build(method_file.method, base_model, **method_file.options)
    mine = trained_tensors(model)
    _refuse_difference(mine.keys(), tensors.keys(), f"{path} does not fit method {method_file.method!r}")
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
    """Say which file it is when safetensors cannot read one."""
    try:
        yield
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size:,} bytes) is damaged or cut off: {error}. Copy the whole folder again, or save it again."
        ) from error


def _refuse_difference(expected: Set[str], found: Set[str], problem: str) -> None:
    """Refuse a file whose tensors are not those that the model trains."""
    parts = [
        f"{len(names)} {word} (first {min(names)})"
        for names, word in ((expected - found, "tensors missing"), (found - expected, "tensors too many"))
        if names
    ]
    if parts:
        raise ValueError(
            f"{problem}: {' and '.join(parts)}. The adapter is incomplete, or the base model is not the one it was "
            f"trained on; load that one afresh."
        )
