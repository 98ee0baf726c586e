"""A field of a settings dataclass with its help text, which the command line and the reference page show."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def option(text: str, default: Any = MISSING, *, default_factory: Any = MISSING) -> Any:
    """A dataclass field that says what it does.

    Args:
        text: What the field is, its unit, and what choosing it costs.
        default: Value when the field is not given; without one the field is required.
        default_factory: Makes that value, for lists and dictionaries.
    """
    return field(default=default, default_factory=default_factory, metadata={"help": text})
