"""Adapters to inspect: several folders on one base model, each adapter under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samparser.methods import load_model
from samparser.methods.folder import MethodFile, format_of, read_peft_config
from samparser.methods.loading import trained_folder
from samparser.sam.frame_choice import ChosenFrame
from samparser.tuner import SVDCoefficientConfig

_RESERVED = "default"


def open_adapters(
    paths: Sequence[str | Path],
    base: str | Path | None = None,
    *,
    frame: ChosenFrame | None = None,
    check_base: bool = True,
    check_weights: bool = True,
) -> tuple[Any, Any]:
    """Load adapters of coefficients on one base model, that of the first one.

    Args:
        paths: Their folders, or names on the Hugging Face hub.
        base: The base model; None for the one that the first adapter names, where it is on this machine.
        frame: How the model takes images, see `samparser.methods.load_model`.
        check_base: As for `samparser.methods.load_trained`.
        check_weights: As for `samparser.methods.load_trained`.

    Returns:
        The PeftModel, frozen and in eval mode, whose `peft_config` has the adapters in the order given under the names
        that `adapter_names` makes of the paths; and the processor. The first adapter is active.

    Raises:
        FileNotFoundError: A folder does not exist or holds no adapter.
        ValueError: A folder holds something else than an adapter of coefficients, one that trained biases, or one of
            another base model, or one that was trained on images in another frame.
    """
    if not paths:
        raise ValueError("There is no adapter to inspect: name at least one folder.")
    folders = [adapter_folder(path) for path in paths]
    _refuse_different_frames(folders)
    model: Any
    model, processor = load_model(folders[0], base, frame=frame, check_base=check_base, check_weights=check_weights)
    names = adapter_names(paths)
    for name, folder in zip(names, folders, strict=True):
        config: Any = read_peft_config(folder)
        config.base_check = config.base_check if check_base else "warn"
        config.weights_sha256 = config.weights_sha256 if check_weights else None
        try:
            model.add_adapter(name, config)
            model.load_adapter(str(folder), name)
        except (ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"{folder} cannot be put beside {folders[0]}: {error}") from error
    model.set_adapter(names[0])
    model.delete_adapter(_RESERVED)
    return model.requires_grad_(False).eval(), processor


def adapter_names(paths: Sequence[str | Path]) -> list[str]:
    """Make short names of folders or hub names, all different, that PEFT and file systems take.

    >>> adapter_names(["runs/nuclei/adapter", "runs/ships v1.2", "other/nuclei/adapter"])
    ['nuclei', 'ships-v1-2', 'nuclei-2']
    """
    names: list[str] = []
    for folder in map(Path, paths):
        # `samparser train` writes RUN/adapter, and the run says more.
        word = folder.parent.name if folder.name == "adapter" and folder.parent.name else folder.name
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", word).strip("-") or "adapter"
        name, number = stem, 1
        while name in (*names, _RESERVED):
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _refuse_different_frames(folders: Sequence[Path]) -> None:
    saved = {folder: MethodFile.read(folder) for folder in folders}
    frames = {folder: file.frame for folder, file in saved.items() if file is not None}
    first = next(iter(frames), None)
    for folder, frame in frames.items():
        if first is not None and frame != frames[first]:
            raise ValueError(
                f"{first} was trained with frame {frames[first]!r} and {folder} with {frame!r}: one model cannot take "
                "images in both. Inspect them one by one."
            )


def adapter_folder(path: str | Path) -> Path:
    """Return the local folder of an adapter of coefficients; what is none is refused before a model is loaded.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no adapter.
        ValueError: It holds something else than an adapter of coefficients, or one that trained biases.
    """
    folder = trained_folder(path)
    if folder is None and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"There is no folder {path}, and no adapter of that name.")
    if folder is None:
        raise ValueError(
            f"{path} is no adapter but a whole model. Name the folder of an adapter (RUN/adapter); how a fully tuned "
            "model differs from its base is what distilling looks at (--distil)."
        )
    config = read_peft_config(folder) if format_of(folder) == "peft" else None
    if not isinstance(config, SVDCoefficientConfig):
        kind = "tensors of a method that is no PEFT adapter" if config is None else f"an adapter of {config.peft_type}"
        raise ValueError(f"{folder} holds {kind}; only adapters of SVD coefficients can be inspected.")
    if config.bias != "none":
        raise ValueError(
            f"{folder} has trained biases of the base model (bias={config.bias!r}), which no scale takes back, so it "
            "cannot be compared with others or with its base."
        )
    return folder
