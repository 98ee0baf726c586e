"""The result files of a comparison: one JSON file per finished cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samparser._files import write_text
from samparser._untrusted import read_json
from samparser.training.run_folder import differences

from .strict import ExperimentError


class ResultStore:
    """The folder `results` of a comparison.

    Args:
        output: The comparison's folder.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / "results"

    def path(self, name: str) -> Path:
        """Return where the result called `name` stands."""
        return self.folder / f"{name}.json"

    def read_same(self, name: str, settings: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any] | None:
        """Read a result that was made with these settings and has these fields; None where there is none yet.

        Raises:
            ExperimentError: The file is damaged, or was made with other settings; the message names every difference.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            result = read_json(path)
        except ValueError as error:
            raise ExperimentError(f"{error}. Delete it to run its cell again.") from error
        lacking = [name for name in fields if not isinstance(result, dict) or name not in result]
        if lacking or not isinstance(result["settings"], dict):
            raise ExperimentError(
                f"{path} lacks {', '.join(lacking) or 'its settings'}, so it is no result. Delete it to run its cell "
                "again."
            )
        if changed := differences(result["settings"], settings):
            raise ExperimentError(
                f"{path} was made with other settings than the experiment says now:\n  "
                + "\n  ".join(changed)
                + "\nGive another --output to have both, or delete this file (and others that the change concerns) to "
                "run it again with the new settings."
            )
        return result

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """Write a result, whole or not at all."""
        write_text(self.path(name), json.dumps(result, indent=1, allow_nan=False) + "\n")
