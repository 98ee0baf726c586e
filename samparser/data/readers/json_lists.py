"""The lists of a large JSON file, decoded a window at a time, so that neither the file nor its objects fill memory.

Where a list can be cut is guessed and then proved: a parser that has read "[", a text and "]" without an error stands
between two entries after the text, however the file goes on. What cannot be proved is left to a parser of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np

WINDOW = 2**20  # bytes: stays in the processor's cache
_AHEAD = 2**16  # bytes; no key and no single value that is passed over is longer
_TRIES = 8  # ends of one piece
_LONGEST_GAP = 256  # bytes between two entries
_SPACE = rb"[ \t\n\r]*"
_OPENED = re.compile(rb"(?:\xef\xbb\xbf)?" + _SPACE + rb"\{")
_KEY = re.compile(_SPACE + rb'"([^"\\]*)"' + _SPACE + rb":" + _SPACE)
_NEXT = re.compile(_SPACE + rb"([,}])")
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[-+.\w]+', re.DOTALL)
_EMPTY = re.compile(rb"\[" + _SPACE + rb"\]")
_CLOSED = re.compile(rb"[\]}]")
_LAST = re.compile(rb"\}(?=" + _SPACE + rb"\])")
_TAIL = re.compile(_SPACE + rb"\]")
_STRING_OR_NOT_FINITE = re.compile(rb'("(?:[^"\\]|\\.)*")|(-?Infinity|NaN)', re.DOTALL)
_ANY = msgspec.json.Decoder(msgspec.Raw)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class Irregular(Exception):  # noqa: N818 - never leaves the readers, which parse such a file as a whole
    """The file is damaged, or not of the plain form that is read by windows."""


class Piece(NamedTuple):
    """Some entries of a list, in order.

    Attributes:
        key: Of the list.
        entries: Decoded.
        text: Their JSON, between brackets.
        start: Where in the file its first byte would be, so that `text[n]` is the file's byte `start + n`.
    """

    key: str
    entries: list[Any]
    text: bytes
    start: int


def read_lists(
    file: BinaryIO, decoders: Mapping[str, msgspec.json.Decoder[Any]], window: int = WINDOW
) -> Iterator[Piece]:
    """Yield the entries of the lists at the top of a JSON object, piece by piece, in the order of the file.

    Args:
        file: Open for reading, at its start.
        decoders: Keys of the lists that are wanted, and how a list of theirs is decoded; entries must be objects.
        window: Bytes to look at in one go; what an entry takes if it is longer.

    Raises:
        Irregular: The file is not JSON, lacks a list or has it twice, or an entry is not what its decoder takes.
    """
    view, seen = _Window(file, window), set()
    view.match(_OPENED)
    mark = b","
    while mark == b",":
        key = view.match(_KEY)[1].decode("utf-8", "replace")
        if key not in decoders:
            _pass_over(view)
        elif key in seen or view.text[view.at : view.at + 1] != b"[":
            raise Irregular
        else:
            seen.add(key)
            yield from _entries(view, key, decoders[key])
        mark = view.match(_NEXT)[1]
    if seen != set(decoders) or not view.is_blank():
        raise Irregular


def spans(text: bytes, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where in the JSON of a list of so many objects each begins, and the byte after its end: int64 (N,)."""
    letters = np.frombuffer(text, dtype=np.uint8)
    opened, closed = np.flatnonzero(letters == ord("{")), np.flatnonzero(letters == ord("}"))
    if len(opened) == len(closed) == number:  # so there are no others
        return opened, closed + 1
    if b"\\" in text:
        # Escaped backslashes first: in '\\"' the quote is one.
        letters = np.frombuffer(text.replace(rb"\\", b"__").replace(rb"\"", b"__"), dtype=np.uint8)
    quotes = np.flatnonzero(letters == ord('"'))
    opened, closed = (places[np.searchsorted(quotes, places) % 2 == 0] for places in (opened, closed))
    places = np.concatenate([opened, closed])
    step = np.repeat([1, -1], [len(opened), len(closed)])
    order = np.argsort(places)
    places, step = places[order], step[order]
    depth = np.cumsum(step)
    return places[(depth == 1) & (step == 1)], places[depth == 0] + 1


def without_not_finite(text: bytes) -> bytes:
    """Return a text of the same length with NaN and Infinity, which Python writes and JSON does not know, in quotes."""
    return _STRING_OR_NOT_FINITE.sub(lambda found: found[1] or b'"%b"' % found[2][2:], text)


class _Window:
    """The part of a file that is in memory, and the place in it that is read next."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self.text, self.at, self.start = file.read(size), 0, 0

    def more(self) -> bool:
        """Forget what has been read and read on; False at the end of the file."""
        block = self._file.read(max(self.size, len(self.text) - self.at))
        self.start += self.at
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def look_ahead(self) -> None:
        """Have enough for what is not longer than a key."""
        while len(self.text) - self.at < min(_AHEAD, self.size) and self.more():
            pass

    def match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        """Read what a pattern matches here."""
        self.look_ahead()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise Irregular
        self.at = found.end()
        return found

    def is_blank(self) -> bool:
        """Whether nothing but space follows."""
        while not self.text[self.at :].strip(b" \t\n\r"):
            self.at = len(self.text)
            if not self.more():
                return True
        return False


def _pass_over(view: _Window) -> None:
    """Read a value that is not wanted."""
    view.look_ahead()
    scalar = _SCALAR.match(view.text, view.at)
    ends = [scalar] if scalar else islice(_CLOSED.finditer(view.text, view.at), 10 * _TRIES)
    for end in ends:
        if _decoded(_ANY, view.text[view.at : end.end()]) is not None:
            view.at = end.end()
            return
    if view.text[view.at : view.at + 1] != b"[":
        raise Irregular
    for _ in _entries(view, "", _LIST):
        pass


def _entries(view: _Window, key: str, decoder: msgspec.json.Decoder[Any]) -> Iterator[Piece]:
    """Read a list of objects; the window stands at its bracket."""
    view.look_ahead()
    empty = _EMPTY.match(view.text, view.at)
    if empty:
        view.at = empty.end()
        return
    view.at += 1
    while True:
        piece, is_last = _piece(view, key, decoder)
        yield piece
        if is_last:
            view.match(_TAIL)
            return
        view.more()


def _piece(view: _Window, key: str, decoder: msgspec.json.Decoder[Any]) -> tuple[Piece, bool]:
    """Read as many entries as the window holds, and say whether the list ends after them."""
    while True:
        text, at, found = view.text, view.at, False
        for end, following, is_last in _ends(text, at):
            found = True
            framed = b"[%b]" % text[at:end]
            entries = _decoded(decoder, framed)
            if entries is not None:
                view.at = following
                return Piece(key, entries, framed, view.start + at - 1), is_last
        # An entry may be longer than the window; but where there are ends and none is one, the file is damaged.
        if (found and len(text) - at > _TRIES * view.size) or not view.more():
            raise Irregular


def _ends(text: bytes, at: int) -> Iterator[tuple[int, int, bool]]:
    """Yield where a piece may end, where to read on, and whether the list would end there; the likeliest first."""
    cuts = islice(_cuts(text, at), _TRIES)
    for cut, following in islice(cuts, 1):
        yield cut, following, False
    for last in islice(_LAST.finditer(text, at), _TRIES):
        yield last.end(), last.end(), True
    for cut, following in cuts:  # the last ones were between the parts of an entry
        yield cut, following, False


def _cuts(text: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the places between "}" and ", {", from the end of a text to its start."""
    following = len(text)
    while (following := text.rfind(b"{", at, following)) > at:
        low = max(at, following - _LONGEST_GAP)
        before = text[low:following].rstrip(b" \t\n\r")
        if before.endswith(b","):
            before = before[:-1].rstrip(b" \t\n\r")
            if before.endswith(b"}"):
                yield low + len(before), following


def _decoded(decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
    """Return the value, or None where the text is not JSON."""
    for attempt in (bytes, without_not_finite):
        try:
            return decoder.decode(attempt(text))
        except (msgspec.ValidationError, UnicodeDecodeError, RecursionError):
            raise Irregular from None
        except msgspec.DecodeError:
            if b"NaN" not in text and b"Infinity" not in text:
                break
    return None
