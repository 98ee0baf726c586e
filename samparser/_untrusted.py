"""Values from other people's files: of the types they should be, not too deep, and with patterns that match soon."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MOST_WAYS = 10**6
"""So many ways to match take about a second on a few hundred names."""

_DEEPEST = 20
_CONFIGURATION = "adapter_config.json"

_TOKEN = re.compile(
    r"(?P<open>\((?:\?:)?(?!\?))|(?P<close>\))|(?P<bar>\|)|(?P<repeat>(?:[*+?]|\{[\d,]*\})[?+]?)"
    r"|\\[^0-9A-Za-z]|\\[dwsDWSbAZ]|\[\^?\]?[^\[\]\\]*\]|[^\\()\[\]{}*+?|]"
)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. True and False are no numbers; lists, sets and tuples are one.

    >>> fits({"a": 1}, dict[str, int]), fits({"a": None}, dict[str, int]), fits(True, int | None)
    (True, False, False)
    """
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if kind in (list, set, tuple):
        return isinstance(value, (list, set, tuple)) and all(fits(item, inner[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)


def refuse_other_choices(values: Any, choices: Mapping[str, Any]) -> None:
    """Refuse a field that holds none of its choices, `Literal` types by the field's name.

    Raises:
        ValueError: One holds something else.
    """
    for name, literal in choices.items():
        value = getattr(values, name)
        if value not in get_args(literal):
            raise ValueError(
                f"{name}={value!r} is not possible; choose one of {', '.join(map(repr, get_args(literal)))}."
            )


def refuse_other_types(values: Any) -> None:
    """Refuse a field of a dataclass that holds something else than is declared.

    Raises:
        ValueError: One holds something else.
    """
    hints = get_type_hints(type(values))
    for name in sorted(one.name for one in fields(values)):
        value = getattr(values, name)
        if not fits(value, hints[name]):
            declared = re.sub(r"typing\.|<class '|'>", "", str(hints[name]))
            declared = re.sub(r"^(?:Optional\[)?Literal\[(.*?)\](?:\]| \| None)$", r"None or one of \1", declared)
            raise ValueError(f"{name}={shown(value)} is not possible; it has to be {declared}.")


def names_or_pattern(name: str, value: Any) -> Any:
    """Give several names as a set and anything else, one pattern or None, as it is.

    Raises:
        ValueError: A name is empty or no text.
    """
    if isinstance(value, (list, tuple, set)):
        if not all(isinstance(item, str) and item for item in value):
            raise ValueError(f"{name}={value!r} has to hold names of modules, not empty and of type str.")
        return set(value)
    if value == "":
        raise ValueError(f"{name} is an empty string; it names no module.")
    return value


def refuse_other_counts(given: Mapping[str, Any]) -> None:
    """Refuse what is no whole number of at least 1, among values by what they are called; None passes.

    Raises:
        ValueError: One is none.
    """
    for where, count in given.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(f"{where}={count!r} has to be a whole number of at least 1.")


def ways_to_match(pattern: str) -> int:
    """Bound the ways in which a simple regular expression can match a name of a hundred letters.

    Backtracking tries no more. Each repetition counts a hundred, an optional part two, a choice its options; all are
    multiplied. What is not simple counts as more than `MOST_WAYS`: a group that repeats, a reference, look-around, more
    than 500 characters.

    >>> ways_to_match("vision_encoder.neck.conv1"), ways_to_match(r".*\\.(q|k|v)_proj")
    (1, 300)
    >>> ways_to_match("(a|a|v)*x") > MOST_WAYS
    True
    """
    too_many = MOST_WAYS + 1
    if len(pattern) > 500:
        return too_many
    ways, at, before, options = 1, 0, "", [1]
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            return too_many
        kind = token.lastgroup or "letter"
        if kind == "open":
            options.append(1)
        elif kind == "bar":
            options[-1] += 1
        elif kind == "close":
            if len(options) == 1:
                return too_many
            ways *= options.pop()
        elif kind == "repeat" and token[0][0] == "?":
            ways *= 2
        elif kind == "repeat":
            if before == "close":
                return too_many
            ways *= 100
        at, before = token.end(), kind
    return ways * options[0]


def shown(value: Any, most: int = 100) -> str:
    """A value as it would be written in Python, shortened."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def refuse_invalid(patterns: Iterable[tuple[str, str]]) -> None:
    """Refuse what is no regular expression, among pairs of a field's name and what stands there.

    Raises:
        ValueError: One is none.
    """
    for name, pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{name}={shown(pattern)} is a string and so a regular expression, but not a valid one: {error}. For "
                "names of modules, use a list."
            ) from error


def refuse_slow(patterns: Iterable[tuple[str, str]]) -> None:
    """Refuse what could match for minutes: whoever wrote a file must not be able to stop a service.

    Raises:
        ValueError: All together have more than `MOST_WAYS`.
    """
    ways = 0
    for name, pattern in patterns:
        ways += ways_to_match(pattern)
        if ways > MOST_WAYS:
            raise ValueError(
                f"{name}={shown(pattern)} could take too long to match. What is read from a file may hold regular "
                "expressions of at most 500 characters, without repeated groups, references and look-around, and with "
                "at most three parts that repeat, such as '.*'. Put names of modules there."
            )


def with_file(error: ValueError, name: str, subfolder: str | None) -> ValueError:
    """Say in an error which file it is about."""
    said = str(error)
    return error if _CONFIGURATION in said else ValueError(f"{Path(name, subfolder or '', _CONFIGURATION)}: {said}")


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no JSON, is nested too deeply or has a number of thousands of digits; the message names it.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON that can be read: {error}") from error


def parse_json(text: str) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: It is no JSON, is nested too deeply or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Fields(dict[str, Any]):
    """What a configuration's file holds; a field that has to be there and is not, is named."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"adapter_config.json has no {key}: it is not the configuration of an adapter, or is damaged.")


def checked_reader(
    read: Callable[..., Any], *, kind: str, known: Collection[str], reader: str
) -> Callable[..., Fields]:
    """Wrap a classmethod that reads a JSON file: what cannot be used becomes a `ValueError` with the file's path.

    Args:
        read: What is called with the class and the path.
        kind: The field that says what the file is about.
        known: What may stand there.
        reader: Who knows these, with its version.
    """

    @functools.wraps(read)
    def checked(cls: type, path_json_file: str, **kwargs: Any) -> Fields:
        try:
            found = read(cls, path_json_file, **kwargs)
            damage = "" if isinstance(found, dict) else f"it holds {shown(found)} and no fields"
            if not damage and _is_deeper(found, _DEEPEST):
                damage = f"its values are nested more than {_DEEPEST} levels deep"
        except (ValueError, TypeError, RecursionError) as error:
            damage = str(error)
        if damage:
            raise ValueError(f"{path_json_file} cannot be read as the configuration of an adapter: {damage}.")
        if kind in found and (not isinstance(found[kind], str) or found[kind] not in known):
            raise ValueError(
                f"{path_json_file}: {kind}={shown(found[kind])} is no method that {reader} knows. The adapter was made "
                "by another version of it, or by a package that adds a method and has to be imported first. Known are "
                f"{', '.join(sorted(str(getattr(one, 'value', one)) for one in known))}."
            )
        return Fields(found)

    return checked


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(one, levels - 1) for one in inner)
