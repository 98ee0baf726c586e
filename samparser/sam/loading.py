"""Loading a SAM checkpoint and its processor, with errors that say what lies there instead."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samparser._extras import require
from samparser._untrusted import read_json, shown
from samparser._words import shortened

from .families.base import IncompleteCheckpointError
from .families.registry import FAMILIES, family_of, known_families, no_family, tuner_only
from .frame import Padded, frame_of
from .frame_choice import CHOICES, ChosenFrame, choose_frame
from .gated import no_access
from .wrapped import image_processor

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_sam(
    name_or_path: str | Path, *, dtype: torch.dtype | None = None, frame: ChosenFrame | None = None
) -> tuple[Any, Any]:
    """Load a checkpoint of a SAM family and its processor.

    Args:
        name_or_path: A local folder, or a name on the Hugging Face hub such as "facebook/sam-vit-base". Names that
            exist as a folder are read from there.
        dtype: Floating-point type of the weights; None keeps that of the checkpoint.
        frame: How the model takes images, where no processor beside it says so or that one is not what it was trained
            with: "padded", as SAM does; "squashed", stretched to a square; "medsam", squashed and scaled from the
            darkest to the brightest value. Kept with what is trained on the model. None: as its processor says.

    Returns:
        The model in eval mode, of the class of its family in transformers, and its processor. Where there is none,
        families that take squashed images only get their usual one, with a warning.

    Raises:
        FileNotFoundError: There is no such folder, and it can be no name on the hub.
        ValueError: What is there is no checkpoint of a SAM family: a PEFT adapter, another architecture, an incomplete
            checkpoint, or a processor for another input size; or there is no processor, no `frame`, and more than one
            way in which the model may have been trained.
        OSError: The hub could not be reached or gives no access, or files are missing or damaged.
        ImportError: The model needs a package that is not installed, or a newer transformers: EdgeTAM
                needs timm and transformers 5.20.
    """
    from transformers import AutoConfig

    source = str(name_or_path)
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local:
        source = str(folder)
    _check_source(source, folder)
    try:
        if local:
            _check_json(folder)
            _check_release(folder)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except ImportError as error:  # EdgeTAM's config asks for timm, its family for a newer transformers
        raise ImportError(f"{source} needs a package that is not here: {' '.join(str(error).split())}") from error
    except Exception as error:  # what a file holds in the place of a number or a list ends anywhere in transformers
        raise _load_error(source, local, error) from error
    family = FAMILIES.get(config.model_type)
    if family is None:
        other = tuner_only(config.model_type)
        advice = "" if other is None else f" {no_family(other)}"
        raise ValueError(
            f"{source} is a checkpoint of type {config.model_type!r}, not of a {known_families()} (type "
            f"{', '.join(map(repr, FAMILIES))}, for example facebook/sam-vit-base).{advice}"
        )
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    family.check_release()
    try:
        model = family.load_model(source, config, **options)
    except (IncompleteCheckpointError, ImportError):
        raise
    except Exception as error:  # safetensors raises its own type on a damaged file
        raise _load_error(source, local, error) from error
    return model, _load_processor(source, local, model, frame)


def in_float32(model: nn.Module) -> nn.Module:
    """Widen weights in half precision, in which the small steps of a training would be lost; others stay as they are.

    No value changes. The model is changed in place and returned.
    """
    half = (torch.float16, torch.bfloat16)
    return model.float() if any(weight.dtype in half for weight in model.parameters()) else model


def _check_source(source: str, folder: Path) -> None:
    if folder.is_file():
        raise ValueError(
            f"{source} is a file; a checkpoint is a folder with config.json and model.safetensors. The "
            "original sam_vit_*.pth files are published in this form as facebook/sam-vit-base, -large and -huge."
        )
    if not folder.is_dir():
        # A hub name is "name" or "owner/name" of word characters, dots and dashes.
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
            raise FileNotFoundError(
                f"There is no folder {source}, and it is not a name on the Hugging Face hub either."
            )
        return
    if (folder / "config.json").is_file():
        return
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        fields = read_json(adapter)
        base = (isinstance(fields, dict) and fields.get("base_model_name_or_path")) or "its base model"
        raise ValueError(
            f"{source} is a PEFT adapter, not a model. Load its base model first, load_sam({base!r}), then put the "
            f"adapter on it: PeftModel.from_pretrained(model, {source!r}), after import samparser."
        )
    content = shortened(sorted(entry.name for entry in folder.iterdir()), 8)
    raise ValueError(f"{source} is not a model folder: it has no config.json. It holds {content}.")


def _check_json(folder: Path) -> None:
    """Refuse files of a checkpoint that hold no fields; transformers' own error over them names none."""
    for path in (folder / name for name in ("config.json", *_PROCESSOR_FILES)):
        if path.is_file() and not isinstance(content := read_json(path), dict):
            raise ValueError(f"{path} holds {shown(content)} and no fields.")


def _check_release(folder: Path) -> None:
    """Refuse a family that the installed transformers is too old for, which it would say in ways of its own."""
    family = FAMILIES.get(str(read_json(folder / "config.json").get("model_type")))
    if family is not None:
        family.check_release()


def _load_error(source: str, local: bool, error: Exception) -> OSError:
    why = str(error).rstrip(".")
    if local:
        return OSError(
            f"The checkpoint in {source} cannot be read: {why}. A complete folder has config.json and "
            "model.safetensors, as save_pretrained writes them; pickled .bin weights are not read."
        )
    if message := no_access(source, error):
        return OSError(message)
    return OSError(
        f"{source} is no local folder, and could not be fetched from the Hugging Face hub: {why}. Check the spelling "
        "and the connection. Offline (or with HF_HUB_OFFLINE=1) give the folder of a downloaded checkpoint instead. "
        "For an adapter on the hub, load its base model here, then the adapter with PeftModel.from_pretrained."
    )


def _load_processor(source: str, local: bool, model: nn.Module, frame: ChosenFrame | None) -> Any:
    family = family_of(model)
    saved = None
    if not local or any((Path(source) / name).is_file() for name in _PROCESSOR_FILES):
        require("PIL.Image", "The processor of a SAM")
        try:
            saved = family.processor(source, model)
        except Exception as error:
            if local or not _absent_from_hub(source):
                raise _load_error(source, local, ValueError(f"its processor: {error}")) from error
    if frame is not None:
        saved = choose_frame(model, frame, saved)
    elif saved is None and isinstance(family.frame(model), Padded):
        raise ValueError(
            f"{source} has no preprocessor_config.json, so nothing says how images were brought to the "
            f"{family.frame(model).size} pixels that this {family.model_class} takes, and a wrong guess ruins the "
            f"masks. Say it with --frame (in Python frame=...): {CHOICES}. Checkpoints of facebook are padded."
        )
    elif saved is None:
        warnings.warn(
            f"{source} has no preprocessor_config.json; using the usual processor of a {family.model_class} for "
            f"{family.frame(model).size} pixels. Save the processor beside the model to fix what it does.",
            stacklevel=3,
        )
        saved = default_processor(model)
    check_processor(model, saved)
    return saved


def _absent_from_hub(source: str) -> bool:
    """Return whether a repository of the hub has no file of a processor, as far as can be told without a connection."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in _PROCESSOR_FILES:
        try:
            hf_hub_download(source, name)
        except LocalEntryNotFoundError:  # No answer from the hub, which is no answer to the question.
            return False
        except EntryNotFoundError:
            continue
        except OSError:
            return False
        return False
    return True


def default_processor(model: nn.Module) -> Any:
    """Return the usual processor of a model's family for the model's input size, in the family's frame."""
    return family_of(model, "A processor").processor(None, model)


def check_processor(model: nn.Module, processor: Any) -> None:
    """Make sure that a processor makes images of the size that the model takes.

    Raises:
        ValueError: The sizes differ, or the processor pads images for a model that takes them squashed.
        TypeError: The model is of no family, or the processor resizes to no square.
    """
    frame = family_of(model).frame(model)
    images = image_processor(processor)
    found = frame_of(images)
    pad = getattr(images, "pad_size", None) if isinstance(found, Padded) else None
    height, width = (found.size, found.size) if pad is None else (pad["height"], pad["width"])
    if (found.size, height, width) != (frame.size,) * 3:
        raise ValueError(
            f"The processor resizes to {found.size} and pads to {height} x {width} pixels, but the model "
            f"takes {frame.size} x {frame.size}. Use the processor saved with the model, or default_processor(model)."
        )
    if isinstance(found, Padded) and not isinstance(frame, Padded):
        raise ValueError(
            f"The processor resizes the longer side and pads the rest, but a {family_of(model).model_class} takes "
            "images squashed to a square. Use the processor saved with the model, or default_processor(model)."
        )
