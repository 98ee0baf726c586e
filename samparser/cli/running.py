"""Runs one verb, and turns what goes wrong into one message and an exit status."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module


def run(verb: str, arguments: Sequence[str], *, show_traceback: bool = False) -> int:
    """Run a verb's file.

    Args:
        verb: The verb, for instance `data check`, which is the file `data_check.py`.
        arguments: The words after it.
        show_traceback: Let errors through.

    Returns:
        The verb's exit status; 2 for a mistake in the input.
    """
    # Deprecations between other packages are nothing that the user of a command can act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        status: int = import_module(f"samparser.cli.{verb.replace(' ', '_')}").run(arguments)
        return status
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if show_traceback:
            raise
        print(f"samparser {verb}: error: {error}\n(--traceback shows where it arose)", file=sys.stderr)
        return 2
