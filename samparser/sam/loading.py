"""Loading a SAM checkpoint and its processor, with errors that say what lies there instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from samparser._untrusted import read_json, shown
from samparser._words import shortened

from .families import FAMILIES
from .wrapped import image_processor, plain_model

if TYPE_CHECKING:
    from transformers import SamModel, SamProcessor

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def load_sam(name_or_path: str | Path, *, dtype: torch.dtype | None = None) -> tuple[SamModel, SamProcessor]:
    """Load a SAM checkpoint and its processor.

    Args:
        name_or_path: A local folder, or a name on the Hugging Face hub such as "facebook/sam-vit-base". Names that
            exist as a folder are read from there.
        dtype: Floating-point type of the weights; None keeps that of the checkpoint.

    Returns:
        The model in eval mode, and its processor. A folder without a processor gets SAM's usual one for the model's
        input size, with a warning.

    Raises:
        FileNotFoundError: There is no such folder, and it can be no name on the hub.
        ValueError: What is there is no SAM checkpoint: a PEFT adapter, another architecture, an incomplete checkpoint,
            or a processor for another input size.
        OSError: The hub could not be reached, or files are missing or damaged.
    """
    from transformers import AutoConfig, SamModel

    source = str(name_or_path)
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if local:
        source = str(folder)
    _check_source(source, folder)
    try:
        if local:
            _check_json(folder)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # what a file holds in the place of a number or a list ends anywhere in transformers
        raise _load_error(source, local, error) from error
    if config.model_type != "sam":
        advice = ""
        if config.model_type in FAMILIES:
            classes = " or ".join(FAMILIES[config.model_type].model_classes)
            advice = (
                f" The tuner itself works on it: load it with transformers ({classes}) and train it in your own loop."
            )
        raise ValueError(
            f"{source} is a checkpoint of type {config.model_type!r}, not of a SamModel (type 'sam', for example "
            f"facebook/sam-vit-base).{advice}"
        )
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        with _quiet_transformers():
            model, found = SamModel.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
            )
    except Exception as error:  # safetensors raises its own type on a damaged file
        raise _load_error(source, local, error) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"{source} is incomplete: {len(missing)} tensors of SamModel are not in it, first "
            f"{shortened(missing, 3)}. They would start random and ruin every mask."
        )
    return model.eval(), _load_processor(source, local, model)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' loading report (missing tensors are raised in words) and its note on torchvision."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


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


def _load_error(source: str, local: bool, error: Exception) -> OSError:
    if local:
        return OSError(
            f"The checkpoint in {source} cannot be read: {error} A complete folder has config.json and "
            "model.safetensors, as save_pretrained writes them; pickled .bin weights are not read."
        )
    return OSError(
        f"{source} is no local folder, and could not be fetched from the Hugging Face hub: {error} Check the spelling "
        "and the connection. Offline (or with HF_HUB_OFFLINE=1) give the folder of a downloaded checkpoint instead. "
        "For an adapter on the hub, load its base model here, then the adapter with PeftModel.from_pretrained."
    )


def _load_processor(source: str, local: bool, model: SamModel) -> SamProcessor:
    from transformers import SamProcessor

    size = model.config.vision_config.image_size
    if local and not any((Path(source) / name).is_file() for name in _PROCESSOR_FILES):
        warnings.warn(
            f"{source} has no preprocessor_config.json; using SAM's usual processor for {size} pixels. Save the "
            "processor beside the model to fix what it does.",
            stacklevel=3,
        )
        return default_processor(model)
    try:
        with _quiet_transformers():
            processor = SamProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _load_error(source, local, ValueError(f"its processor: {error}")) from error
    check_processor(model, processor)
    return processor


def default_processor(model: nn.Module) -> SamProcessor:
    """Return SAM's processor for a model's size: longest side to it, ImageNet normalisation, zero padding."""
    config: Any = plain_model(model).config
    size = config.vision_config.image_size
    mask = 4 * size // config.vision_config.patch_size
    with _quiet_transformers():
        from transformers import SamImageProcessor, SamProcessor

        return SamProcessor(
            SamImageProcessor(
                size={"longest_edge": size},
                pad_size={"height": size, "width": size},
                mask_size={"longest_edge": mask},
                mask_pad_size={"height": mask, "width": mask},
            )
        )


def check_processor(model: nn.Module, processor: Any) -> None:
    """Make sure that a processor makes images of the size that the model takes.

    Raises:
        ValueError: The sizes differ.
    """
    config: Any = plain_model(model).config
    expected = config.vision_config.image_size
    images = image_processor(processor)
    longest, pad = images.size["longest_edge"], images.pad_size
    if (longest, pad["height"], pad["width"]) != (expected, expected, expected):
        raise ValueError(
            f"The processor resizes to {longest} and pads to {pad['height']} x {pad['width']} pixels, but the model "
            f"takes {expected} x {expected}. Use the processor saved with the model, or default_processor(model)."
        )
