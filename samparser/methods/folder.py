"""A folder with a trained part: which files it holds and what they say, read before any model is touched.

A model of PEFT is saved as PEFT's own files. Any other method leaves `trained.safetensors`, the tensors that differ
from the base. Beside either stands `method.json`: the method, its options, the base's name and, where the format has
no check of its own, the hashes of the base's frozen weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import peft
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from samparser._untrusted import parse_json, refuse_invalid, refuse_slow
from samparser._version import __version__
from samparser._words import shortened

from .base_check import fingerprint
from .registry import METHODS

METHOD_FILE = "method.json"
TENSOR_FILE = "trained.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
_FORMAT = 1


# Fields of `method.json` and their types.
_FIELDS: dict[str, Any] = {
    "format": int,
    "method": str,
    "options": dict,
    "base_model": str | None,
    "base": dict | None,
    "trained": dict | None,
    "frame": str | None,
}
_REQUIRED = ("format", "method", "options")


@dataclass(frozen=True)
class MethodFile:
    """What `method.json` says.

    Attributes:
        method: Name of the method that made the trained part.
        options: Its options.
        base_model: Name or path of the base model, where it is known.
        base: Dtype and hashes of the base's frozen weights; None where the adapter's own format compares the base.
        trained: Hashes of the trained tensors by their names in the file; None where the adapter's own format has them.
        frame: How the base takes images, where somebody chose it (`load_sam(..., frame=...)`); None: as its processor
            says.
    """

    method: str
    options: dict[str, Any]
    base_model: str | None = None
    base: dict[str, Any] | None = None
    trained: dict[str, str] | None = None
    frame: str | None = None

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
        content = read_json(path)
        missing = sorted(set(_REQUIRED) - set(content if isinstance(content, dict) else ()))
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}: it was not written by samparser, or is damaged.")
        given = {name: content.get(name) for name in _FIELDS}
        wrong = [f"{name} is {given[name]!r}" for name, kind in _FIELDS.items() if not isinstance(given[name], kind)]
        base = given["base"]
        if not wrong and base and not (isinstance(base.get("dtype"), str) and isinstance(base.get("weights"), dict)):
            wrong = ["base holds no dtype and weights"]
        if wrong:
            raise ValueError(f"{path} is damaged: {', '.join(wrong)[:200]}. Save the trained part again.")
        if given.pop("format") > _FORMAT:
            raise ValueError(
                f"{path} has format {content['format']}, written by samparser {content.get('samparser')}; this is "
                f"samparser {__version__}, which reads up to format {_FORMAT}. Install a newer samparser."
            )
        if given["method"] not in METHODS:
            raise ValueError(
                f"{folder} was trained with method {given['method']!r}, which is not registered. Import the module "
                f"that defines it first; known are {', '.join(METHODS)}."
            )
        return cls(**given)

    def check_trained(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Refuse tensors that are not those that were saved.

        Raises:
            ValueError: The message names the file and the first such tensor.
        """
        found = fingerprint(tensors)
        changed = [name for name, digest in (self.trained or {}).items() if found.get(name, digest) != digest]
        if changed:
            raise ValueError(
                f"{path} is not as it was saved: {len(changed)} of {len(found)} tensors have other values, first "
                f"{changed[0]}. It is damaged: copy the whole folder again. If it was changed on purpose, load it with "
                f"check_weights=False (--check_weights false) and save it again."
            )


def read_json(path: Path) -> Any:
    """Read a file of a trained part.

    Raises:
        ValueError: It is no JSON; the message names it.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Copy the whole folder again, or save it again.") from error


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


def _patterns(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what PEFT takes for regular expressions, with the fields' names."""
    whole = [
        (name, content[name]) for name in ("target_modules", "exclude_modules", "layers_pattern") if name in content
    ]
    keys = [(name, key) for name in ("rank_pattern", "alpha_pattern") for key in content.get(name) or ()]
    return [(name, pattern) for name, pattern in (*whole, *keys) if isinstance(pattern, str)]


def read_peft_config(folder: Path) -> PeftConfig:
    """Read `adapter_config.json`.

    Raises:
        ValueError: It is damaged, of a PEFT method that is not known here, or of one that does not fit a SAM or would
            fetch or import what a file names.
    """
    path = folder / PEFT_CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or "peft_type" not in content:
        raise ValueError(f"{path} names no peft_type: it is not a configuration of PEFT, or is damaged.")
    kind = content["peft_type"]
    known = {str(name.value): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"{path} has peft_type {kind!r}, which PEFT {peft.__version__} does not know. It is of a newer PEFT, which "
            f"has to be installed then, or is damaged. Known are {', '.join(sorted(known))}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fields of a newer PEFT: named when the adapter is loaded
        try:
            refuse_invalid(_patterns(content))
            refuse_slow(_patterns(content))
            config = known[kind].from_pretrained(str(folder))
        except Exception as error:
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(said if str(path) in said else f"{path} cannot be used: {said}") from error
    name = config.base_model_name_or_path
    if not isinstance(name, str | None):
        raise ValueError(f"{path} is damaged: base_model_name_or_path is {name!r}. Copy the adapter again.")
    if config.is_prompt_learning or kind == "XLORA":
        raise ValueError(
            f"{path} has peft_type {kind}, which is for language models"
            + (" and fetches further adapters that the file names" if kind == "XLORA" else "")
            + ". A SAM takes adapters that change its layers, such as LORA and SVD_COEFFICIENT."
        )
    if getattr(config, "megatron_config", None):
        raise ValueError(
            f"{path} asks to import {config.megatron_core!r} (megatron_config), which no adapter of a SAM needs and "
            f"which is not done for a file. Remove megatron_config from it if you trust the adapter."
        )
    return config
