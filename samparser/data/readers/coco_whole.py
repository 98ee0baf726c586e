"""A COCO file that cannot be read by windows, parsed as a whole: read all the same, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..sample import DataError
from .json_lists import Piece, without_not_finite

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEEDS = {"images": "each image needs id and file_name", "categories": "each category needs id and name"}


def read_whole(path: Path, decoders: Mapping[str, msgspec.json.Decoder[Any]]) -> Iterator[Piece]:
    """Yield the lists of a COCO file, each as one piece.

    Args:
        path: The file.
        decoders: How the lists are decoded, by their keys.

    Raises:
        DataError: The file is not JSON, or is JSON of another kind; the message says what is wrong first.
        OSError: It cannot be read.
    """
    text = _standard_json(path)
    tables = _tables(text, path)
    for key, needs in _NEEDS.items():
        yield Piece(key, _entries(tables[key], decoders[key], path, needs), b"", 0)
    annotations = bytes(tables["annotations"])
    yield Piece(
        "annotations",
        _annotations(annotations, decoders["annotations"], path),
        annotations,
        _address(tables["annotations"]) - _address(text),
    )


def _entries(table: msgspec.Raw, decoder: msgspec.json.Decoder[Any], path: Path, needs: str) -> list[Any]:
    try:
        return list(decoder.decode(table))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it again in this encoding.") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not COCO's: {needs} ({error}).") from error


def _annotations(table: bytes, decoder: msgspec.json.Decoder[Any], path: Path) -> list[Any]:
    """Return the annotations, or name the first one that is not COCO's."""
    try:
        return list(decoder.decode(table))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    found = []
    for number, raw in enumerate(msgspec.json.decode(table, type=list[msgspec.Raw])):
        try:
            found += decoder.decode(b"[%b]" % raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = str(error).removesuffix(" - at `$[0]`").replace("`$[0].", "`$.")
            raise DataError(
                f"Annotation number {number} of {path} is not COCO's: it needs image_id and category_id ({reason})."
            ) from error
    return found


def _standard_json(path: Path) -> bytes:
    """Return a file's text, of the same length, without a byte order mark and with NaN and Infinity in quotes.

    Both are not JSON, but Python writes them. Every other text that is not JSON stays so.
    """
    text = path.read_bytes()
    if text.startswith(_BYTE_ORDER_MARK):
        text = b" " * len(_BYTE_ORDER_MARK) + text[len(_BYTE_ORDER_MARK) :]
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return without_not_finite(text)
    except RecursionError:
        raise DataError(f"{path} is not COCO's: its lists are nested too deeply.") from None
    return text


def _tables(text: bytes, path: Path) -> dict[str, msgspec.Raw]:
    """Return the lists at the top of a COCO file, not yet decoded; each refers to its place in `text`."""
    try:
        tables = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        tables = {"a list at the top": msgspec.Raw(b"null")}
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8 ({error}). Save it again in this encoding.") from error
    except msgspec.DecodeError as error:
        hint = " It is in UTF-16; save it as UTF-8." if text[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path} is not a JSON file, or only the beginning of one ({error}).{hint}") from error
    wanted = ("images", "annotations", "categories")
    missing = [key for key in wanted if memoryview(tables.get(key, b""))[:1] != b"["]
    if missing:
        raise DataError(
            f"{path} is JSON but not a COCO annotation file: it has no list {' and no list '.join(missing)}; found "
            f"{', '.join(sorted(tables)[:8]) or 'nothing'}. COCO files have images, annotations and categories."
        )
    return tables


def _address(buffer: Any) -> int:
    return int(np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0])
