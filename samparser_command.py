"""The `samparser` command up to its verb: help, version and mistyped verbs, answered without importing torch.

This file stands beside the package because importing `samparser` registers the tuner with PEFT, and with it come torch
and seconds of waiting. Each verb is a file of `samparser/cli`, imported when it is asked for.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, metadata
from typing import NoReturn

VERBS = {
    "train": "fine-tune a SAM on a data set",
    "evaluate": "score a base model, an adapter or a merged model",
    "predict": "segment images with boxes, points or a grid",
    "merge": "write adapter and base as one plain SamModel",
    "push": "upload an adapter to the Hugging Face hub",
    "data check": "read a data set, count, draw a contact sheet",
    "data convert": "write a data set in the layout of another tool",
    "inspect": "what adapters changed: spectra, likeness, scores in part and together; distil",
    "compare": "run an experiment: every method side by side, beside the paper's figures",
    "methods": "list the methods that --method knows",
}


_GO_ON = {
    "train": " The same command with --resume goes on from the last checkpoint.",
    "compare": " What is finished is kept; the same command goes on from there.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: The words after `samparser`; those of the process if not given.

    Returns:
        0 when it went well, 1 when a checked data set cannot be trained on or images were left out, 2 for an error; 130
        when it was stopped by Ctrl-C, 141 when nobody reads its output any more, 143 by SIGTERM, as shells count.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no error
    try:
        try:
            return _answer(arguments)
        finally:
            _write()
    except BrokenPipeError:  # whoever read the output has seen enough: `samparser methods | head`
        _let_output_go()
        return 141
    except _OutputError as error:
        _let_output_go()
        print(f"samparser: error: The output cannot be written: {error}.", file=sys.stderr)
        return 2


class _OutputError(Exception):
    """Standard output cannot be written."""


def _write(text: str = "") -> None:
    """Print a text, and what waits to be printed."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputError(error.strerror) from error


def _let_output_go() -> None:
    """Send what is left to nowhere, or Python would complain again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _answer(arguments: Sequence[str] | None) -> int:
    """Answer what needs no verb, or run the verb."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--traceback"]
    verb = next((name for name in VERBS if words[: len(name.split())] == name.split()), None)
    if verb is not None:
        return _run(verb, words[len(verb.split()) :], show_traceback="--traceback" in given)
    if words[:1] == ["--version"]:
        _write(f"samparser {metadata.version('samparser')}\n")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        _write(f"{_usage()}\n")
        return 0
    # A verb may have two words. (`samparser._words` knows how to ask, but stands behind torch.)
    near = [name for name in VERBS if name.startswith(words[0])]
    near = near or get_close_matches(" ".join(words[:2]), VERBS, 1) or get_close_matches(words[0], VERBS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    print(f"samparser: error: There is no verb {words[0]!r}.{hint}\n\n{_usage()}", file=sys.stderr)
    return 2


def _run(verb: str, words: Sequence[str], *, show_traceback: bool) -> int:
    """Import what the verb needs and run it, until it ends or is stopped: both signals end with one line."""
    try:
        with _stopped_by_sigterm():
            try:
                running = import_module("samparser.cli.running")
            except ImportError as error:
                if show_traceback:
                    raise
                print(f"samparser {verb}: error: samparser cannot be imported: {error}", file=sys.stderr)
                return 2
            status: int = running.run(verb, words, show_traceback=show_traceback)
            return status
    except (KeyboardInterrupt, _Terminated) as stop:
        if show_traceback:
            raise
        how, status = ("Ctrl-C", 130) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", 143)
        if _speaks_first():
            print(f"\nsamparser {verb}: stopped by {how}.{_GO_ON.get(verb, '')}", file=sys.stderr)
        return status


def _speaks_first() -> bool:
    """Whether this process, of several that a launcher started, is to say why they end."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    first: bool = import_module("samparser.cli.speaking").speaks_first()
    return first


class _Terminated(BaseException):
    """SIGTERM came; as with Ctrl-C, what is underway is cleaned up."""


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread only
        return

    def stop(*_: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {text}" for name, text in VERBS.items())
    return (
        f"usage: samparser VERB [options]\n\n{verbs}\n\n`samparser VERB --help` explains a verb's options, "
        "`samparser --version` tells the version."
    )


if __name__ == "__main__":
    raise SystemExit(main())
