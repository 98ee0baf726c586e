"""Python files that an experiment names: they add methods and layouts before the experiment is checked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from .strict import ExperimentError

_imported: set[Path] = set()


def import_files(files: Iterable[Path]) -> None:
    """Execute Python files, each once in a process.

    Raises:
        ExperimentError: A file is not there or fails; the message names it.
    """
    for file in files:
        file = file.resolve()
        if file in _imported:
            continue
        spec = importlib.util.spec_from_file_location(f"samparser_compare_import_{file.stem}", file)
        if not file.is_file() or spec is None or spec.loader is None:
            raise ExperimentError(f"The experiment imports {file}, which is no Python file that exists.")
        module = importlib.util.module_from_spec(spec)
        # Pickle and dataclasses look a module up by its name.
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[spec.name]
            raise ExperimentError(f"{file}, which the experiment imports, fails: {error!r}") from error
        _imported.add(file)
