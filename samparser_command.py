"""The `samparser` command up to its verb: help, version and mistyped verbs, answered without importing torch.

This file stands beside the package because importing `samparser` registers the tuner with PEFT, and with it come torch
and seconds of waiting. Each verb is a file of `samparser/cli`, imported when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module, metadata

VERBS = {
    "train": "fine-tune a SAM on a data set",
    "evaluate": "score a base model, an adapter or a merged model",
    "predict": "segment images with boxes, points or a grid",
    "merge": "write adapter and base as one plain SamModel",
    "push": "upload an adapter to the Hugging Face hub",
    "data check": "read a data set, count, draw a contact sheet",
    "compare": "run an experiment: every method side by side, beside the paper's figures",
    "methods": "list the methods that --method knows",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: The words after `samparser`; those of the process if not given.

    Returns:
        0 when it went well, 1 when a checked data set cannot be trained on, 2 for a mistake in the input.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--traceback"]
    verb = next((name for name in VERBS if words[: len(name.split())] == name.split()), None)
    if verb is not None:
        running = import_module("samparser.cli.running")
        status: int = running.run(verb, words[len(verb.split()) :], show_traceback="--traceback" in given)
        return status
    if words[:1] == ["--version"]:
        print(f"samparser {metadata.version('samparser')}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    # A verb may have two words. (`samparser._words` knows how to ask, but stands behind torch.)
    near = [name for name in VERBS if name.startswith(words[0])]
    near = near or get_close_matches(" ".join(words[:2]), VERBS, 1) or get_close_matches(words[0], VERBS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    print(f"samparser: error: There is no verb {words[0]!r}.{hint}\n\n{_usage()}", file=sys.stderr)
    return 2


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {text}" for name, text in VERBS.items())
    return (
        f"usage: samparser VERB [options]\n\n{verbs}\n\n`samparser VERB --help` explains a verb's options, "
        "`samparser --version` tells the version."
    )


if __name__ == "__main__":
    raise SystemExit(main())
