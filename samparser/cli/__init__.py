"""The verbs of the `samparser` command, one file each: parse the options, call the library, print what came out.

Every option is a field of one of the library's settings dataclasses, so `samparser VERB --help` and the Python API tell
the same. `samparser_command`, outside the package, chooses the verb.
"""

from __future__ import annotations

from samparser_command import VERBS, main

__all__ = ["VERBS", "main"]
