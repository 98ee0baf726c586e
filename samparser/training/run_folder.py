"""The folder of one run: its settings, versions, log, checkpoints, adapter, scores and figures."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samparser._files import no_folder, write_text
from samparser._lock import LOCK, FolderLocked, locked
from samparser._untrusted import read_json
from samparser.drawing.plots import read_log

from .checkpoints import last_whole
from .environment import git_state, versions

# Stands in settings.json, so that no other settings.json is taken for that of a run.
_WRITTEN_BY = {"written_by": "samparser train"}
# What a run writes, and what `overwrite` deletes: nothing else. settings.json goes last, so that a run that was killed
# while it deleted is still known as a run.
_FOLDERS = {
    "checkpoints": r"(damaged-)?checkpoint-[0-9]+",
    "adapter": r".+\.json|.+\.safetensors|README\.md",
    "figures": r"(curves|spectra|best-median-worst)\.png",
    "tensorboard": r"events\.out\.tfevents\..+",
}
_FILES = (
    *("finished.json", "scores.json", "scores.csv", "scores_before.csv", "scores_before.json"),
    *("scores_also_before.csv", "scores_also.csv", "forgetting.json", "expansion.json"),
    *("log.jsonl", "environment.json"),
)
# What a run that was killed before its settings.json leaves.
_UNFINISHED = re.compile(r"\.(environment|settings)\.[0-9a-f]{32}\.tmp\.json")


class RunFolderError(ValueError):
    """The output folder cannot be used as asked; the message says why and what to do."""


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
    evaluation, `scores_before.json` and `scores_before.csv` the same of the model before its first step,
    `scores_also_before.csv` and `scores_also.csv` both on another set and `forgetting.json` what was lost there,
    `expansion.json` the directions of an expansion and what they see of the gradient, `figures/` PNGs, `finished.json`
    the number of steps and the run times, written last. While a run goes, `.lock` says which process writes.
    """

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def expansion(self) -> Path:
        return self.path / "expansion.json"

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
    def also_before(self) -> Path:
        return self.path / "scores_also_before.csv"

    @property
    def also_after(self) -> Path:
        return self.path / "scores_also.csv"

    @property
    def forgetting(self) -> Path:
        return self.path / "forgetting.json"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def finished(self) -> Path:
        return self.path / "finished.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process until the block ends; make it where it is not there.

        Raises:
            RunFolderError: Another process writes it, or it holds files that are no run.
        """
        self._there()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path):
                yield
        except FolderLocked as error:
            raise RunFolderError(str(error)) from error

    def open(
        self,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool = False,
        may_differ: Collection[str] = (),
        needed: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Make the folder ready for a run with these settings, or say why it is not.

        Args:
            settings: Everything that was asked.
            resume: Go on with the run that is there.
            overwrite: Delete the run that is there: the files that a run writes, and no others.
            may_differ: Names of settings, such as "train.logging_steps", that a resumed run may have otherwise.
            needed: What the run reads, by name: "the cache", "the training data". Overwriting is refused where
                something of it lies inside.

        Raises:
            RunFolderError: The folder holds another run, a run of the same settings although `resume` was not
                asked, a run with other settings although it was, or files that are no run at all.
        """
        wanted = {**_WRITTEN_BY, **json.loads(json.dumps(settings))}
        there = self._there()
        if there is not None and overwrite:
            if resume:
                raise RunFolderError(
                    f"{self.path} holds a run, and both --resume and --overwrite were given: the one goes on with it, "
                    "the other deletes it. Give one of them."
                )
            self._refuse_inside(needed or {})
            self._delete()
            there = None
        if there is None:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self.path.iterdir():
                if _UNFINISHED.fullmatch(path.name):
                    path.unlink()
            about = {"versions": versions(), "git": git_state()}
            write_text(self.path / "environment.json", json.dumps(about, indent=2))
            write_text(self.settings, json.dumps(wanted, indent=2))
            return
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
        self.rows()

    def _there(self) -> dict[str, Any] | None:
        """Return the settings of the run that the folder holds, or None where it is empty or not there."""
        if reason := no_folder(self.path):
            raise RunFolderError(f"{reason}; choose another output folder.")
        if not self.settings.is_file():
            if self.path.is_dir() and not all(self._is_of_a_beginning(path) for path in self.path.iterdir()):
                raise RunFolderError(
                    f"{self.path} is not empty and holds no run (no settings.json); choose another output folder."
                )
            return None
        try:
            content = read_json(self.settings)
        except ValueError as error:
            raise RunFolderError(
                f"{error}, so nothing in its folder is touched; choose another output folder."
            ) from error
        if not isinstance(content, dict) or content.items().isdisjoint(_WRITTEN_BY.items()):
            raise RunFolderError(
                f"{self.settings} was not written by `samparser train`, so nothing in its folder is touched; choose "
                "another output folder."
            )
        return content

    def _is_of_a_beginning(self, path: Path) -> bool:
        """Return whether a file is what a run leaves that was killed before it had written its settings."""
        if path.name == "environment.json":
            try:
                return "samparser" in read_json(path)["versions"]
            except (OSError, ValueError, KeyError, TypeError):
                return False
        return path.name == LOCK or _UNFINISHED.fullmatch(path.name) is not None

    def _refuse_inside(self, needed: Mapping[str, str | Path]) -> None:
        own = self.path.resolve()
        for what, path in needed.items():
            if own == Path(path).resolve() or own in Path(path).resolve().parents:
                raise RunFolderError(
                    f"{what}, {path}, lies inside {self.path}, which --overwrite would clear. Move it elsewhere, or "
                    "choose another output folder."
                )

    def _delete(self) -> None:
        for name, written in _FOLDERS.items():
            folder = self.path / name
            for path in [path for path in folder.glob("*") if re.fullmatch(written, path.name)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
        for name in (*_FILES, self.settings.name):
            (self.path / name).unlink(missing_ok=True)

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is whole, or None."""
        return last_whole(self.checkpoints)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `log.jsonl`; a last line that was cut off while it was written is left out.

        Raises:
            RunFolderError: Another line is damaged; the message names it.
        """
        if not self.log.is_file():
            return []
        try:
            rows = read_log(self.log)
            for row in rows:
                if not isinstance(row.get("step", 0), int):
                    raise ValueError(f"{self.log}: the step {row['step']!r} is no whole number")
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{error}. Mend that line, or start again with --overwrite.") from error
        return rows

    def rewind_log(self, step: int) -> None:
        """Drop the rows after a step, so that the log of a resumed run equals that of an uninterrupted one.

        The row of the final scores is written anew by every run that ends.
        """
        kept = [row for row in self.rows() if row.get("step", 0) <= step and "final_miou" not in row]
        if self.log.is_file():
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in kept))
