"""`samparser data convert`: write a data set of any layout in another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samparser._options import option
from samparser.data import DataSettings
from samparser.data.convert import WRITERS, convert_dataset

from .parser import SettingsParser
from .shared import output_folder


@dataclass(frozen=True)
class ConvertCommand:
    """Write a data set of any layout in another one, with its splits and the names of its classes."""

    out: str = option("Folder to write; a new or an empty one.")
    to: str = option(f"Layout to write: {', '.join(WRITERS)}.")
    files: Literal["copy", "link"] = option("Copy the images, or link to them where they are.", "copy")
    shapes: Literal["auto", "masks", "polygons"] = option(
        "What an object is written as, where the layout knows both: masks, or polygons along the edges of pixels. "
        "auto: masks.",
        "auto",
    )


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "data convert",
        {"what to write": ConvertCommand, "data": DataSettings},
        ("data", "out"),
        example="samparser data convert my-export my-data --to coco",
    )


def run(arguments: Sequence[str]) -> int:
    """Write the data set and say what was lost.

    Returns:
        0, or 1 where images were left out because they cannot be read.
    """
    command, data = parser().parse(arguments)
    output_folder(command.out)
    result = convert_dataset(data, command.out, command.to, files=command.files, shapes=command.shapes)
    print(result)
    return 1 if result.unreadable else 0
