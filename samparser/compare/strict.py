"""Dataclasses from JSON without tolerance: every unknown field and every wrong type is named with what is possible."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from samparser._untrusted import fits
from samparser._words import did_you_mean

T = TypeVar("T")
# Up to here a float holds every whole number.
_LARGEST = 2**53


class ExperimentError(ValueError):
    """An experiment cannot be run as it is written; the message says where, what was given and what is possible."""


@contextmanager
def said_where(where: str) -> Iterator[None]:
    """Put the place in the file before what a class of settings says of its values."""
    try:
        yield
    except ExperimentError:
        raise
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{where}: {error}") from error


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, noun: str = "field") -> None:
    """Raise an error that names the first unknown word, the nearest known one and all of them."""
    known = list(known)
    for word in given:
        if word not in known:
            raise ExperimentError(
                f"{where}: there is no {noun} {word!r}.{did_you_mean(str(word), known)} "
                f"Possible are: {', '.join(known) or 'none'}."
            )


def check_fields(kind: type, given: Any, where: str, *, allowed: Iterable[str] | None = None) -> dict[str, Any]:
    """Check names and types of a JSON object against the fields of a dataclass.

    Args:
        kind: The dataclass.
        given: What JSON had.
        where: Its place in the file, for messages.
        allowed: The fields that may be given, where not all of them may.

    Returns:
        The object, as it is.

    Raises:
        ExperimentError: It is no object, has an unknown field, or a value of another type.
    """
    if not isinstance(given, Mapping):
        raise ExperimentError(f"{where} must be an object {{...}}, got {given!r}.")
    hints = get_type_hints(kind)
    refuse_unknown(given, [part.name for part in fields(kind)] if allowed is None else allowed, where)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise ExperimentError(f"{where}.{name} must be {_say(hints[name])}, got {value!r:.200}.")
    return dict(given)


def from_json(kind: type[T], given: Any, where: str) -> T:
    """Make an instance of a dataclass whose fields are JSON values.

    Raises:
        ExperimentError: See `check_fields`; or a field without default is missing, or the class refuses a value.
    """
    values = check_fields(kind, given, where)
    missing = [
        part.name
        for part in fields(kind)  # type: ignore[arg-type]
        if part.default is MISSING and part.default_factory is MISSING and part.name not in values
    ]
    if missing:
        raise ExperimentError(f"{where} lacks {', '.join(missing)}.")
    with said_where(where):
        return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    # What a field of anything holds is checked where its own fields are.
    return fits(value, hint) and (Any in get_args(hint) or _in_range(value))


def _in_range(value: Any) -> bool:
    """Tell whether no number in a value is infinite, not a number, or too large to count with."""
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(_in_range(item) for item in items)


def _say(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    origin, choices = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_say(choice) for choice in choices)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in choices)
    if origin in (list, tuple):
        return f"a list, each item {_say(choices[0])}"
    if origin is dict or hint is dict:
        return "an object {...}"
    return names.get(hint, str(hint))
