"""Regular expressions that come with an adapter: refused where matching them to names could take for ever."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

# Matching takes time like the length of a name to this power, at the most.
_MOST_REPEATS = 4
_WHOLE_FIELDS = ("target_modules", "exclude_modules", "layers_pattern")
_KEY_FIELDS = ("rank_pattern", "alpha_pattern")


def check_patterns(content: Mapping[str, Any], where: object) -> None:
    """Refuse a configuration with a regular expression that is none, or that could take for ever.

    Args:
        content: What `adapter_config.json` holds.
        where: The file, for the message.

    Raises:
        ValueError: The message names the field and the expression.
    """
    for name, pattern in _patterns(content):
        try:
            repeats = _repeats(parser.parse(pattern), inside=False)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{where} is damaged: {name} has {pattern!r:.100}, no regular expression ({error})."
            ) from error
        if repeats > _MOST_REPEATS:
            raise ValueError(
                f"{where}: {name} has the regular expression {pattern!r:.100}, whose repetitions stand in one another "
                f"or are more than {_MOST_REPEATS}: matching it could take for ever. List the modules by their names."
            )


def _patterns(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _WHOLE_FIELDS:
        if isinstance(content.get(name), str):
            yield name, content[name]
    for name in _KEY_FIELDS:
        if isinstance(content.get(name), dict):
            yield from ((name, key) for key in content[name])


def _repeats(tree: Any, *, inside: bool) -> int:
    """Count the unbounded repetitions; one inside of another, or a choice inside of one, counts as too many."""
    count = 0
    for operation, argument in tree:
        kind = str(operation)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, part = argument
            unbounded = most > _MOST_REPEATS
            count += unbounded + _repeats(part, inside=inside or unbounded)
            count += _MOST_REPEATS * (inside and unbounded)
        elif kind == "BRANCH":
            count += sum(_repeats(part, inside=inside) for part in argument[1]) + _MOST_REPEATS * inside
        elif isinstance(argument, tuple):
            count += sum(_repeats(part, inside=inside) for part in argument if isinstance(part, parser.SubPattern))
    return count
