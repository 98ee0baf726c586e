"""Counting and shortening in messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def count(number: int, noun: str, several: str | None = None) -> str:
    """A number with its noun.

    >>> count(1, "image"), count(1200, "image"), count(2, "entry", "entries")
    ('1 image', '1,200 images', '2 entries')
    """
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"


def printable(text: str, keep: str = "\n") -> str:
    r"""A text from somebody else's file, in which nothing moves the cursor of a terminal or breaks a line.

    >>> printable("a\x1b[31m\n b", keep="")
    'a\\x1b[31m\\n b'
    """
    return "".join(one if one.isprintable() or one in keep else repr(one)[1:-1] for one in text)


def shortened(items: Iterable[object], most: int = 5) -> str:
    """The first items of a list, and how many more there are.

    >>> shortened("abcdefg", 3), shortened("ab"), shortened([])
    ('a, b, c and 4 more', 'a, b', 'nothing')
    """
    shown = [str(item) for item in items]
    more = f" and {len(shown) - most:,} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "nothing") + more


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word nearest to a mistaken one, as a sentence that starts with a space; empty if none is near.

    >>> did_you_mean("prdict", ["predict", "train"])
    " Did you mean 'predict'?"
    """
    near = get_close_matches(word, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
