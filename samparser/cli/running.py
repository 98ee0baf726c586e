"""Runs one verb, and says in one place what goes wrong: which errors there are, their message and the exit status."""

from __future__ import annotations

import errno
import linecache
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError

import samparser
from samparser._memory import PREDICTION, SCORING, TRAINING
from samparser._words import printable

from .parser import ParserExit
from .speaking import lost_another, say, who

# What our rooms and the libraries below them raise for input that cannot be; their texts are written for users.
MISTAKES = (ValueError, OSError, ImportError, RuntimeError, SafetensorError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LESS_MEMORY = {"train": TRAINING, "compare": TRAINING, "evaluate": SCORING, "predict": PREDICTION}


def run(verb: str, arguments: Sequence[str], *, show_traceback: bool = False) -> int:
    """Run a verb's file.

    Args:
        verb: The verb, for instance `data check`, which is the file `data_check.py`.
        arguments: The words after it.
        show_traceback: Let errors through.

    Returns:
        The verb's exit status; 2 for any error.

    Raises:
        SystemExit: Help was asked for, or argparse has said what is wrong.
        BrokenPipeError: Nobody reads the output any more.
    """
    # Deprecations between other packages are nothing that the user of a command can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        try:
            status: int = import_module(f"samparser.cli.{verb.replace(' ', '_')}").run(arguments)
        finally:
            _close_progress_bars()
        return status
    except (ParserExit, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        if show_traceback:
            raise
        say(f"samparser {verb}: error: {printable(explain(error, verb))}{who()}")
        return 2


def _close_progress_bars() -> None:
    """End the line of a bar that is still shown, so that a message begins on a line of its own."""
    tqdm = sys.modules.get("tqdm")
    for bar in list(getattr(getattr(tqdm, "tqdm", None), "_instances", ())):
        bar.close()


def explain(error: BaseException, verb: str) -> str:
    """Return the message for an error: what it is, and what to do.

    Args:
        error: What a verb raised.
        verb: The verb, which decides what needs less memory.
    """
    text = _of_worker(str(error)) or type(error).__name__
    where = "\n(--traceback shows where it arose)"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"The memory of this machine does not suffice ({_short(text)}). {_LESS_MEMORY.get(verb, '')}{where}"
    if lost_another(error):
        again = " The same command with --resume goes on from the last checkpoint." if verb == "train" else ""
        return f"Another process of this run has ended: it was killed, or its machine was lost.{again}{where}"
    if _is_full(error):
        again = "the same command with --resume goes on" if verb == "train" else "give the same command again"
        return (
            f"A file could not be written: the disk is full, or a limit on sizes is reached ({_short(text)}). Nothing "
            f"was written over. Free some space, then {again}.{where}"
        )
    if isinstance(error, RecursionError):
        return f"Something in a file or an option is nested too deeply to be read ({_short(text)}).{where}"
    if isinstance(error, OverflowError):
        return f"A number in a file or an option is too large to be used ({_short(text)}).{where}"
    if isinstance(error, EOFError | UnicodeError | SafetensorError):
        return f"A file is damaged or cut off, or is not what its name says ({type(error).__name__}: {text}).{where}"
    if isinstance(error, SystemExit):
        return f"Code that was imported ended the program by itself, with sys.exit({error.code!r}).{where}"
    if isinstance(error, MISTAKES) or _is_raised_on_purpose(error):
        return text + where
    return (
        f"Something that samparser did not foresee: {type(error).__name__}: {text}\nThis may be a fault of samparser "
        "rather than of your input. The same command with --traceback shows where it arose; please report that."
    )


def _of_worker(text: str) -> str:
    """What went wrong in a process that reads images, without the traceback that torch puts into its message."""
    if "Original Traceback (most recent call last)" not in text:
        return text
    lines = text.rstrip().splitlines()
    last_frame = max(number for number, line in enumerate(lines) if line.startswith("  "))
    return "\n".join(lines[last_frame + 1 :])


def _is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit is used up: safetensors and torch say so in words of their own."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)
    torch_writer = "PytorchStreamWriter failed" in text or ("inline_container" in text and "unexpected pos" in text)
    return torch_writer or any(os.strerror(number) in text for number in _FULL)


def _is_raised_on_purpose(error: BaseException) -> bool:
    """Whether a `raise` of ours made the error: a TypeError may be a message for the user, or a fault."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    inside = Path(samparser.__file__).parent in Path(file).parents
    return inside and linecache.getline(file, trace.tb_lineno).lstrip().startswith("raise ")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "..."
