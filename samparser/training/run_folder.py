"""The folder of one run: its settings, versions, log, checkpoints, adapter, scores and figures."""

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samparser._files import write_text
from samparser._version import __version__

_PACKAGES = ("torch", "peft", "transformers", "accelerate", "safetensors", "numpy")
# Written into a checkpoint when all of its files are on disk; a run killed while saving leaves a folder without it.
COMPLETE = "complete"


class RunFolderError(ValueError):
    """The output folder cannot be used as asked; the message says why and what to do."""


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"samparser": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit of the working folder's repository and whether it has changes; None outside a repository."""
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every setting whose value differs, both values named."""
    left, right = _flat(old), _flat(new)
    missing = "(not set)"
    return [
        f"{name}: {left.get(name, missing)!r} there, {right.get(name, missing)!r} now"
        for name in sorted(left.keys() | right.keys())
        if left.get(name, missing) != right.get(name, missing)
    ]


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    ``settings.json`` what was asked, ``environment.json`` versions and commit, ``log.jsonl`` one row per logged step
    or evaluation, ``checkpoints/`` for resuming, ``adapter/`` the result, ``scores.json`` and ``scores.csv`` the
    final evaluation, ``scores_before.csv`` the same of the model before its first step, ``figures/`` PNGs.
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
    def finished(self) -> bool:
        return (self.path / "scores.json").is_file() or (self.path / "finished.json").is_file()

    def open(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool = False) -> None:
        """Makes the folder ready for a run with these settings, or says why it is not.

        Raises:
            RunFolderError: The folder holds another run, a run of the same settings although ``resume`` was not
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
            changed = differences(there, wanted)
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
        """The newest checkpoint that was written to its end, or None."""
        found = [
            folder
            for folder in self.checkpoints.glob("checkpoint-*")
            if (folder / COMPLETE).is_file() and folder.name.rsplit("-", 1)[-1].isdigit()
        ]
        return max(found, key=lambda folder: int(folder.name.rsplit("-", 1)[-1]), default=None)

    def remove_incomplete_checkpoints(self) -> None:
        """Deletes checkpoints that a killed run did not write to their end."""
        for folder in self.checkpoints.glob("checkpoint-*"):
            if not (folder / COMPLETE).is_file():
                shutil.rmtree(folder)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of ``log.jsonl``; a last line that was cut off while it was written is left out."""
        if not self.log.is_file():
            return
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def rewind_log(self, step: int) -> None:
        """Drops the rows after a step, so that the log of a resumed run equals that of an uninterrupted one."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        if self.log.is_file():
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))
