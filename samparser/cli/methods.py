"""`samparser methods`: list the methods that `samparser train --method` knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samparser.methods import METHODS

from .parser import SettingsParser


@dataclass(frozen=True)
class MethodsCommand:
    """List the methods that `samparser train --method` knows, with what each of them trains."""


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "methods",
        {"what to list": MethodsCommand},
        example="samparser methods",
    )


def run(arguments: Sequence[str]) -> int:
    """Print a line for each method."""
    parser().parse(arguments)
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        print(f"{name:{width}}  {method.summary}")
    return 0
