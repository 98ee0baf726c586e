"""The result files of a comparison: one JSON file per finished cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samparser.training.run_folder import differences

from .cell import write_result
from .strict import ExperimentError


class ResultStore:
    """The folder `results` of a comparison.

    Args:
        output: The comparison's folder.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / "results"

    def path(self, name: str) -> Path:
        """Where the result called `name` stands."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """A result, or None where there is none yet.

        Raises:
            ExperimentError: The file is damaged.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ExperimentError(f"{path} is not JSON ({error}). Delete it to run its cell again.") from error

    def read_same(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """A result that was made with these settings, or None where there is none yet.

        Raises:
            ExperimentError: It was made with other settings; the message names every difference.
        """
        result = self.read(name)
        changed = differences(result["settings"], settings) if result is not None else []
        if changed:
            raise ExperimentError(
                f"{self.path(name)} was made with other settings than the experiment says now:\n  "
                + "\n  ".join(changed)
                + "\nGive another --output to have both, or delete this file (and others that the change concerns) to "
                "run it again with the new settings."
            )
        return result

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """Writes a result, whole or not at all."""
        write_result(self.path(name), result)
