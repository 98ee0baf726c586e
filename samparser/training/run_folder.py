"""The folder of one run: its settings, versions, log, checkpoints, adapter, scores and figures."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samparser._files import write_text
from samparser._version import __version__
from samparser.drawing.plots import read_log

_PACKAGES = ("torch", "peft", "transformers", "accelerate", "safetensors", "numpy")
# Written into a checkpoint when all of its files are on disk; a run killed while saving leaves a folder without it.
COMPLETE = "complete"


class RunFolderError(ValueError):
    """The output folder cannot be used as asked; the message says why and what to do."""


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {"samparser": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of the working folder's repository and whether it has changes; None outside a repository."""
    command = ["git", "-C", str(folder or Path.cwd())]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed_files": len(status.stdout.splitlines())}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Collection[str] = ()) -> list[str]:
    """Return one line for every setting whose value differs, both values named."""
    left, right = _flat(old), _flat(new)
    missing = "(not set)"
    return [
        f"{name}: {left.get(name, missing)!r} there, {right.get(name, missing)!r} now"
        for name in sorted((left.keys() | right.keys()) - set(may_differ))
        if left.get(name, missing) != right.get(name, missing)
    ]


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    `settings.json` what was asked, `environment.json` versions and commit, `log.jsonl` one row per logged step or
    evaluation, `checkpoints/` for resuming, `adapter/` the result, `scores.json` and `scores.csv` the final
    evaluation, `scores_before.csv` the same of the model before its first step, `figures/` PNGs, `finished.json` the
    number of steps and the run times, written last.
    """

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def scores_before(self) -> Path:
        return self.path / "scores_before.csv"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def finished(self) -> Path:
        return self.path / "finished.json"

    def open(
        self,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool = False,
        may_differ: Collection[str] = (),
    ) -> None:
        """Make the folder ready for a run with these settings, or say why it is not.

        Args:
            settings: Everything that was asked.
            resume: Go on with the run that is there.
            overwrite: Delete the run that is there.
            may_differ: Names of settings, such as "train.logging_steps", that a resumed run may have otherwise.

        Raises:
            RunFolderError: The folder holds another run, a run of the same settings although `resume` was not
                asked, a run with other settings although it was, or files that are no run at all.
        """
        wanted = json.loads(json.dumps(settings))
        if overwrite and self.settings.is_file():
            shutil.rmtree(self.path)
        if self.settings.is_file():
            try:
                there = json.loads(self.settings.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RunFolderError(f"{self.settings} is not JSON ({error}); choose another output folder.") from error
            changed = differences(there, wanted, may_differ)
            if changed:
                raise RunFolderError(
                    f"{self.path} holds a run with other settings:\n  " + "\n  ".join(changed) + "\nGive the same "
                    "settings to go on with it, or choose another output folder."
                )
            if not resume:
                raise RunFolderError(
                    f"{self.path} already holds a run with these settings. Add --resume to go on with it, "
                    "--overwrite to delete it and start again, or choose another output folder."
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise RunFolderError(
                f"{self.path} is not empty and holds no run (no settings.json); choose another output folder."
            )
        else:
            if self.path.exists() and not self.path.is_dir():
                raise RunFolderError(f"{self.path} is a file; choose another output folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(
                self.path / "environment.json", json.dumps({"versions": versions(), "git": git_state()}, indent=2)
            )
            write_text(self.settings, json.dumps(wanted, indent=2))

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, or None."""
        found = [
            folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if (folder / COMPLETE).is_file() and folder.name.rsplit("-", 1)[-1].isdigit()
        ]
        return max(found, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)

    def remove_incomplete_checkpoints(self) -> None:
        """Delete checkpoints that a killed run did not write to their end."""
        for folder in self.checkpoints.glob("checkpoint-*"):
            if not (folder / COMPLETE).is_file():
                shutil.rmtree(folder)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `log.jsonl`; a last line that was cut off while it was written is left out.

        Raises:
            RunFolderError: Another line is damaged; the message names it.
        """
        if not self.log.is_file():
            return []
        try:
            return read_log(self.log)
        except ValueError as error:
            raise RunFolderError(f"{error}. Mend that line, or start again with --overwrite.") from error

    def rewind_log(self, step: int) -> None:
        """Drop the rows after a step, so that the log of a resumed run equals that of an uninterrupted one."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step and "final_miou" not in row]
        if self.log.is_file():
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))
