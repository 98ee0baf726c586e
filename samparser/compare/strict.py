"""Dataclasses from JSON without tolerance: every unknown field and every wrong type is named with what is possible."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ExperimentError(ValueError):
    """An experiment cannot be run as it is written; the message says where, what was given and what is possible."""


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str, noun: str = "field") -> None:
    """Raises an error that names the first unknown word, the nearest known one and all of them."""
    known = list(known)
    for word in given:
        if word not in known:
            near = get_close_matches(str(word), known, 1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ExperimentError(
                f"{where}: there is no {noun} {word!r}.{guess} Possible are: {', '.join(known) or 'none'}."
            )


def check_fields(kind: type, given: Any, where: str, *, allowed: Iterable[str] | None = None) -> dict[str, Any]:
    """Checks names and types of a JSON object against the fields of a dataclass.

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
    names = [field.name for field in fields(kind)] if allowed is None else list(allowed)
    refuse_unknown(given, names, where)
    for name, value in given.items():
        if not _fits(value, hints[name]):
            raise ExperimentError(f"{where}.{name} must be {_say(hints[name])}, got {value!r}.")
    return dict(given)


def from_json(kind: type[T], given: Any, where: str) -> T:
    """An instance of a dataclass whose fields are JSON values.

    Raises:
        ExperimentError: See `check_fields`; or a field without default is missing, or the class refuses a value.
    """
    values = check_fields(kind, given, where)
    missing = [
        field.name
        for field in fields(kind)  # type: ignore[arg-type]
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values
    ]
    if missing:
        raise ExperimentError(f"{where} lacks {', '.join(missing)}.")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if origin is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


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
