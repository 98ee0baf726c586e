"""A folder with a trained part: which files it holds and what they say, read before any model is touched.

A model of PEFT is saved as PEFT's own files. Any other method leaves `trained.safetensors`, the tensors that differ
from the base. Beside either stands `method.json`: the method, its options, the base's name and, where the format has
no check of its own, the hashes of the base's frozen weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from samparser._version import __version__
from samparser._words import shortened

from .registry import METHODS

METHOD_FILE = "method.json"
TENSOR_FILE = "trained.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class MethodFile:
    """What `method.json` says.

    Attributes:
        method: Name of the method that made the trained part.
        options: Its options.
        base_model: Name or path of the base model, where it is known.
        base: Dtype and hashes of the base's frozen weights; None where the adapter's own format compares the base.
    """

    method: str
    options: dict[str, Any]
    base_model: str | None = None
    base: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write the file into a folder."""
        content = {"format": _FORMAT, "samparser": __version__, **asdict(self)}
        (folder / METHOD_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> MethodFile | None:
        """Read the file of a folder; None where there is none, as with adapters saved by PEFT alone.

        Raises:
            ValueError: It is damaged, of a newer format, or names a method that is not registered.
        """
        path = folder / METHOD_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. Save the trained part again.") from error
        missing = {"format", "method", "options"} - set(content if isinstance(content, dict) else ())
        if missing:
            raise ValueError(
                f"{path} lacks {', '.join(sorted(missing))}: it was not written by samparser, or is damaged."
            )
        if content["format"] > _FORMAT:
            raise ValueError(
                f"{path} has format {content['format']}, written by samparser {content.get('samparser')}; this is "
                f"samparser {__version__}, which reads up to format {_FORMAT}. Install a newer samparser."
            )
        if content["method"] not in METHODS:
            raise ValueError(
                f"{folder} was trained with method {content['method']!r}, which is not registered. Import the module "
                f"that defines it first; known are {', '.join(METHODS)}."
            )
        return cls(content["method"], content["options"], content.get("base_model"), content.get("base"))


def format_of(folder: Path) -> Literal["peft", "tensors"]:
    """Return in which format the folder holds a trained part.

    Raises:
        FileNotFoundError: The folder does not exist or holds neither.
        ValueError: It holds a PEFT adapter in a file that is not safetensors, or without its weights.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if (folder / PEFT_CONFIG).is_file():
        if (folder / PEFT_TENSORS).is_file():
            return "peft"
        raise ValueError(
            f"{folder} has {PEFT_CONFIG} but no {PEFT_TENSORS}"
            + (
                "; adapter_model.bin is a pickle, which is not read. Save it again as safetensors."
                if (folder / "adapter_model.bin").is_file()
                else ": it is incomplete. Copy the whole folder, or save the adapter again."
            )
        )
    if (folder / METHOD_FILE).is_file():
        return "tensors"
    nested = sorted(path.parent for name in (PEFT_CONFIG, METHOD_FILE) for path in folder.glob(f"*/{name}"))
    raise FileNotFoundError(
        f"{folder} holds no trained part: neither {PEFT_CONFIG} nor {METHOD_FILE}. It holds "
        f"{shortened(sorted(entry.name for entry in folder.iterdir()), 8)}."
        + (f" Did you mean {nested[0]}?" if nested else "")
    )


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json`.

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
