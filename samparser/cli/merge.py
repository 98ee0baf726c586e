"""`samparser merge`: write an adapter and its base as one plain model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samparser._files import replacing_folder
from samparser._options import option
from samparser.methods import load_model, merged
from samparser.methods.loading import trained_folder

from .parser import SettingsParser
from .shared import LoadSettings, output_folder


@dataclass(frozen=True)
class MergeCommand:
    """Write an adapter and its base as one plain model of transformers that needs no samparser."""

    adapter: str = option("The adapter: its folder (for instance RUN/adapter), or its name on the Hugging Face hub.")
    out: str = option("Folder for the merged checkpoint; a new or an empty one.")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "merge",
        {"what to merge": MergeCommand, "how to open it": LoadSettings},
        ("adapter", "out"),
        example="samparser merge runs/mine/adapter sam-mine",
    )


def run(arguments: Sequence[str]) -> int:
    """Merge, and say how the result is loaded."""
    command, loading = parser().parse(arguments)
    out = output_folder(command.out)
    if trained_folder(command.adapter) is None:
        load_model(command.adapter)  # says what it is where it is no model either
        raise ValueError(f"{command.adapter} is a whole model already, so there is nothing to merge.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder for the merged model.")
    model, processor = loading.load(command.adapter)
    plain: Any = merged(model, in_place=True)
    with replacing_folder(out) as folder:
        plain.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"{out}: a plain {type(plain).__name__}; load it with {type(plain).__name__}.from_pretrained({str(out)!r})")
    return 0
