"""`samparser data check`: read a data set, count, draw a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samparser._options import option
from samparser.data import DataSettings
from samparser.data_check import check_dataset

from .parser import SettingsParser


@dataclass(frozen=True)
class CheckCommand:
    """Read a data set as training would, count, and draw a contact sheet."""

    split: str = option("Split to check; all also finds images that stand in two splits.", "all")
    contact_sheet: str | None = option("PNG with images, masks and boxes; 'none': do not draw.", "contact-sheet.png")
    processes: int | None = option(
        "Processes that read side by side. Default: one for every 250 images, at most one a core.", None
    )


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "data check",
        {"what to check": CheckCommand, "data": DataSettings},
        ("data",),
        example="samparser data check path/to/data --split train",
    )


def run(arguments: Sequence[str]) -> int:
    """Print the report; status 1 where the data set cannot be trained on."""
    command, data = parser().parse(arguments)
    sheet = None if command.contact_sheet in (None, "none") else Path(command.contact_sheet)
    report = check_dataset(data, command.split, contact_sheet=sheet, processes=command.processes)
    print(report)
    return 0 if report.usable else 1
