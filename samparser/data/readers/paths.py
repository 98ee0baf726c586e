"""Files of a data set: which count, and which are safe to open."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from ..sample import DataError


def check_regular(path: Path) -> Path:
    """Return `path` if it is a regular file or a link to one: opening a named pipe would wait for ever.

    Raises:
        DataError: There is nothing of that name, or it is a folder, a pipe or a device.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise DataError(f"{path} is {kind} and not a file.")
    return path


def read_text(path: Path) -> str:
    """Return the content of a small text file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return check_regular(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def visible_files(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Yield the files below a folder in order, without hidden ones and those in hidden folders.

    Hidden names are what systems and tools leave behind: .DS_Store, ._a.png, .ipynb_checkpoints/a-checkpoint.png, and
    the temporary files of a writer that was killed.
    """
    for path in sorted(folder.rglob(pattern)):
        if not is_hidden(path, folder):
            yield path


def is_hidden(path: Path, root: Path) -> bool:
    """Tell whether a file, or a folder that it lies in below a root, has a name that starts with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
