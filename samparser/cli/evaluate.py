"""`samparser evaluate`: score a model on a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from samparser._files import write_text
from samparser._options import option
from samparser._untrusted import read_json
from samparser._words import shortened
from samparser.data import DataSettings
from samparser.training import EvalSettings, evaluate
from samparser.training.environment import versions

from .parser import SettingsParser
from .shared import (
    DEVICE,
    MODEL,
    LoadSettings,
    first_process,
    on_device,
    open_split,
    output_folder,
    refuse_less_than_one,
    say,
)

_WRITTEN_BY = {"written_by": "samparser evaluate"}
_FILES = ("settings.json", "scores.csv", "scores.json")


@dataclass(frozen=True)
class EvaluateCommand:
    """Score a base model, an adapter or a merged model on a data set."""

    model: str = option(MODEL)
    split: str = option("Split to score.", "val")
    output: str | None = option("Folder for scores.json and scores.csv (one row per instance).", None)
    limit_images: int | None = option("Score only so many images.", None)
    device: Literal["auto", "cpu"] = option(DEVICE, "auto")

    def __post_init__(self) -> None:
        refuse_less_than_one(self, "limit_images")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "evaluate",
        {
            "what to score": EvaluateCommand,
            "how to open it": LoadSettings,
            "data": DataSettings,
            "scoring": EvalSettings,
        },
        ("model",),
        example="samparser evaluate runs/mine/adapter --data path/to/data --output scores",
    )


def run(arguments: Sequence[str]) -> int:
    """Score, print the table, and write it where a folder is given."""
    command, loading, data, scoring = parser().parse(arguments)
    folder = output_folder(command.output) if command.output else None
    if folder is not None:
        _refuse_foreign(folder)
    model, processor = loading.load(command.model)
    dataset = open_split(data, command.split)
    table = evaluate(on_device(model, command.device), processor, dataset, scoring, limit=command.limit_images)
    say(table)
    if folder is not None and first_process():
        given = {"command": command, "loading": loading, "data": data, "evaluation": scoring}
        settings = {**_WRITTEN_BY, **{name: asdict(part) for name, part in given.items()}, "versions": versions()}
        # First, for it says whose the others are.
        write_text(folder / "settings.json", json.dumps(settings, indent=2))
        table.to_csv(folder / "scores.csv")
        table.to_json(folder / "scores.json")
        print(f"written: {folder / 'scores.json'}, {folder / 'scores.csv'}")
    return 0


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files of these names that are not an earlier evaluation's: those of a run, for instance.

    Raises:
        ValueError: There are such files.
    """
    there = [folder / name for name in _FILES if (folder / name).exists()]
    try:
        content = read_json(folder / "settings.json")
        own = isinstance(content, dict) and _WRITTEN_BY.items() <= content.items()
    except (OSError, ValueError):
        own = False
    if there and not own:
        raise ValueError(
            f"{folder} holds {shortened(there, 3)}, which `samparser evaluate` did not write and would replace; name "
            "another folder with --output."
        )
