"""Opens whatever a user has: a base model, a merged model, or a folder with a trained part, which goes on its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samparser.sam import load_sam
from samparser.sam.frame_choice import ChosenFrame
from samparser.sam.gated import no_access
from samparser.sam.loading import in_float32

from .base_check import check_base as check_base_weights
from .folder import METHOD_FILE, PEFT_CONFIG, PEFT_TENSORS, TENSOR_FILE, MethodFile, format_of, read_peft_config
from .registry import AppliedMethod, build, refuse_tuned, set_applied_method
from .restoring import unchanged_on_error
from .saving import trained_tensors


def load_model(
    path: str | Path,
    base: str | Path | None = None,
    *,
    frame: ChosenFrame | None = None,
    check_base: bool = True,
    check_weights: bool = True,
) -> tuple[nn.Module, Any]:
    """Load a model that is ready to predict, and the processor of its base.

    Of the hub nothing is fetched but what the caller names: where a trained part names a base that is neither a folder
    nor in the hub's cache on this machine, the error says what would be fetched, and giving it as `base` fetches it.

    Args:
        path: A model (a folder with `config.json`), or a folder that `save_trained` or PEFT wrote; or the name of
            either on the Hugging Face hub, such as `"facebook/sam-vit-base"` or `"name/sam-nuclei"`. A name that
            exists as a folder is read from there. Of a hub repository, no pickle is fetched.
        base: The base model of a trained part. Not given, it is read from the folder.
        frame: How the model takes images, see `load_sam`. Not given, a trained part's own record counts.
        check_base: As for `load_trained`.
        check_weights: As for `load_trained`.

    Returns:
        Model and processor.

    Raises:
        FileNotFoundError: The folder holds neither a model nor a trained part, or the base is not there.
        ValueError: A base or a check is given for a whole model, or no base is known for a trained part; or the trained
            part is incomplete, belongs to another base, or was trained with another frame.
        OSError: The hub could not be reached, or has no such repository.
    """
    folder = trained_folder(path)
    if folder is None:
        given = {"base": base and str(base), "check_base": check_base, "check_weights": check_weights}
        for name, default in (("base", None), ("check_base", True), ("check_weights", True)):
            if given[name] != default:
                raise ValueError(f"{path} is a whole model, so {name}={given[name]!r} has no use. Leave it out.")
        return load_sam(path, frame=frame)
    model, processor = load_base_of(folder, base, frame=frame)
    return load_trained(model, folder, check_base=check_base, check_weights=check_weights), processor


def load_trained(
    base_model: nn.Module,
    folder: str | Path,
    *,
    trainable: bool = False,
    check_base: bool = True,
    check_weights: bool = True,
) -> nn.Module:
    """Put a saved trained part on its base model, bit for bit.

    The base model is changed in place, and is as it was where loading fails; use what is returned. It comes back frozen
    and in eval mode, or with `trainable` ready to be trained on.

    Args:
        base_model: The plain model the part was trained on.
        folder: A folder that `save_trained`, or PEFT's `save_pretrained`, wrote.
        trainable: Whether the loaded part is to be trained further.
        check_base: Whether to refuse a base whose frozen weights are not those of the training (the comparison takes
            about a second for ViT-B). Adapters of coefficients compare the weights they change, and with False warn.
        check_weights: Whether to refuse trained weights that are not those that were saved. Adapters that PEFT alone
            wrote hold no hashes to compare with.

    Returns:
        The tuned model.

    Raises:
        FileNotFoundError: The folder does not exist or holds no trained part.
        ValueError: The base is another one, the method is unknown, or the files are damaged, incomplete or do not fit.
    """
    folder = Path(folder)
    refuse_tuned(base_model, f"loading {folder}")
    is_peft = format_of(folder) == "peft"
    saved = MethodFile.read(folder)
    if check_base and saved is not None and saved.base:
        check_base_weights(base_model, {**saved.base, "name": saved.base_model}, folder)
    path = folder / (PEFT_TENSORS if is_peft else TENSOR_FILE)
    tensors = _read_tensors(path) if is_peft or path.exists() else {}
    if check_weights and saved is not None:
        saved.check_trained(tensors, path)
    with unchanged_on_error(base_model), _explained(folder, base_model):
        if is_peft:
            model = _put_adapter(base_model, folder, tensors.keys(), check_base, check_weights)
        else:
            assert saved is not None, "a folder of this format is recognised by its method.json"
            model = _put_tensors(base_model, folder, tensors, saved)
    if is_peft and saved is not None:
        trained = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        set_applied_method(model, AppliedMethod(saved.method, saved.options, trained))
    if not trainable:
        model.requires_grad_(False).eval()
        if is_peft:
            model.active_peft_config.inference_mode = True
    return model


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
        if message := no_access(name, error):
            raise OSError(message) from error
        raise OSError(
            f"{path} is no local folder, and could not be fetched from the Hugging Face hub: {error} Check the "
            f"spelling and the connection; private and gated repositories need `hf auth login`. Offline (or with "
            f"HF_HUB_OFFLINE=1) give the folder of a download instead."
        ) from error
    return fetched if any((fetched / name).is_file() for name in (PEFT_CONFIG, METHOD_FILE)) else None


def load_base_of(
    folder: Path, base: str | Path | None = None, *, frame: ChosenFrame | None = None
) -> tuple[nn.Module, Any]:
    """Load the base model that a trained part goes on, without it.

    A base in half precision is widened where the part was trained on float32 and its file holds hashes of all weights.

    Args:
        folder: The folder of the trained part.
        base: The base model; None for the one that the folder names, where it is on this machine.
        frame: As for `load_model`.

    Raises:
        FileNotFoundError: The base is not on this machine.
        ValueError: The folder names none, it cannot be loaded, or another frame was trained with.
    """
    frame = _recorded_frame(folder, frame)
    model, processor = load_sam(base, frame=frame) if base is not None else _load_recorded_base(folder, frame)
    saved = MethodFile.read(folder)
    if saved is not None and (saved.base or {}).get("dtype") == "float32":
        model = in_float32(model)
    return model, processor


def _recorded_frame(folder: Path, given: ChosenFrame | None) -> ChosenFrame | None:
    """Return the frame that a trained part was trained with, or the given one where none is recorded."""
    saved = MethodFile.read(folder)
    recorded = saved.frame if saved is not None else None
    if recorded is not None and given not in (None, recorded):
        raise ValueError(
            f"{folder} was trained with frame {recorded!r}, and {given!r} was asked for: its masks would be of other "
            "images than it learnt. Leave frame out."
        )
    return cast(ChosenFrame | None, recorded or given)


def _load_recorded_base(folder: Path, frame: ChosenFrame | None) -> tuple[nn.Module, Any]:
    """Load the base that a folder names, from this machine: the file is a stranger's, who must not choose downloads."""
    if format_of(folder) == "peft":
        name = read_peft_config(folder).base_model_name_or_path
    else:
        saved = MethodFile.read(folder)
        name = saved.base_model if saved else None
    if not name:
        raise ValueError(
            f"{folder} does not say which base model it was trained on. Give it: base='facebook/sam-vit-base', or the "
            f"folder of the base."
        )
    cached = None if Path(name).expanduser().exists() else _cached(name)
    if cached is not None and not any(cached.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} was trained on {name!r}, which is not on this machine. Nothing is fetched because a file says "
            f"so: give base={name!r} to fetch it from the Hugging Face hub, or the folder of the base."
        )
    try:
        model, processor = load_sam(cached or name, frame=frame)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"{folder} was trained on {name!r}, which cannot be loaded: {error} If the base is elsewhere now, give it "
            f"as base."
        ) from error
    # A folder of the cache says nothing to whoever reads what is saved from here on.
    cast(Any, model).name_or_path = name
    return model, processor


def _cached(name: str) -> Path | None:
    """Return the folder that the hub's cache has for a name, with or without content; None for what is no such name."""
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path("not in the cache")
    except ValueError:  # no valid name: load_sam says so
        return None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
        raise ValueError(
            f"{path}{size} is damaged or cut off: {error}. Copy the whole folder again, or save it again."
        ) from error


@contextmanager
def _explained(folder: Path, model: nn.Module) -> Iterator[None]:
    """Turn what other libraries raise over files that do not fit into one error that names the folder."""
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(
            f"{folder} cannot be put on this {type(model).__name__}: {kind}{error} It is damaged, or the base model is "
            f"not the one it was trained on. Copy the whole folder again, or save it again."
        ) from error


def _put_adapter(
    base_model: nn.Module, folder: Path, saved: Set[str], check_base: bool, check_weights: bool
) -> PeftModel:
    path = folder / PEFT_TENSORS
    config = read_peft_config(folder)
    plain = base_model.state_dict().keys()
    for module in getattr(config, "modules_to_save", None) or ():
        needed = {f"base_model.model.{key}" for key in plain if f".{module}." in f".{key}"}
        lacking = needed - saved
        if lacking and not any(f".{module}." in f".{key}" for key in saved - needed):
            some = f"{len(lacking)} of the {len(needed)} weights" if len(lacking) < len(needed) else "the weights"
            raise ValueError(
                f"{path} lacks {some} of {module!r}, which {PEFT_CONFIG} says were trained (first {min(lacking)}): the "
                f"masks would come from an untrained {module}. Copy the whole adapter, or save it again."
            )
    if not check_base and hasattr(config, "base_check"):
        config.base_check = "warn"
    if not check_weights and hasattr(config, "weights_sha256"):
        config.weights_sha256 = None
    model = PeftModel.from_pretrained(base_model, str(folder), config=config, is_trainable=True)
    _refuse_difference(trained_tensors(model).keys(), saved, f"{path} does not fit its configuration")
    return model


def _put_tensors(base_model: nn.Module, folder: Path, tensors: Mapping[str, Tensor], saved: MethodFile) -> nn.Module:
    path = folder / TENSOR_FILE
    model = build(saved.method, base_model, **saved.options)
    mine = trained_tensors(model)
    _refuse_difference(mine.keys(), tensors.keys(), f"{path} does not fit method {saved.method!r}")
    for name, tensor in tensors.items():
        if tensor.shape != mine[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in {path} and {tuple(mine[name].shape)} in this model: the "
                f"base is another one. Load the base model it was trained on."
            )
    model.load_state_dict(dict(tensors), strict=False)
    return model


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
