"""Checkpoints of a run: marked once every file is on the disk, and compared with the mark before a run goes on."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from samparser._files import flush_to_disk, write_text
from samparser._untrusted import read_json

# Written into a checkpoint last of all, with name, size and hash of every other file in it.
COMPLETE = "complete"


def mark_complete(checkpoint: Path) -> None:
    """Wait until a checkpoint is on the disk, then list its files in the mark that makes it count."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_dir():
            flush_to_disk(path)
        elif path.name != COMPLETE:
            flush_to_disk(path)
            files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": _hash(path)}
    flush_to_disk(checkpoint)
    write_text(checkpoint / COMPLETE, json.dumps({"files": files}, indent=1), flush=True)


def damage(checkpoint: Path) -> str | None:
    """Return what of a marked checkpoint does not match its mark, or None where everything does."""
    try:
        files = read_json(checkpoint / COMPLETE)["files"]
        for name, about in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != about["bytes"]:
                return f"{name} has {size:,} bytes instead of {about['bytes']:,}"
            if _hash(path) != about["sha256"]:
                return f"the content of {name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"the list of its files, {COMPLETE}, cannot be read ({type(error).__name__})"
    return None if TRAINER_STATE_NAME in files else f"the list of its files, {COMPLETE}, lacks {TRAINER_STATE_NAME}"


def last_whole(folder: Path, *, needs_best: bool = False, warn: bool = False) -> Path | None:
    """Return the newest checkpoint that a run can go on from, or None.

    Args:
        folder: The folder of the checkpoints.
        needs_best: Whether the checkpoint with the best score, which a checkpoint names, has to be whole too.
        warn: Name those that are passed over in a warning.
    """
    for checkpoint in sorted(checkpoints_in(folder), key=step_of, reverse=True):
        if not (checkpoint / COMPLETE).is_file():
            continue
        wrong = damage(checkpoint)
        if wrong is None and needs_best:
            wrong = _damage_of_best(checkpoint)
        if wrong is None:
            return checkpoint
        if warn:
            warnings.warn(
                f"{checkpoint} is damaged: {wrong}. The run goes on from the one before, or from the start where "
                "there is none.",
                stacklevel=2,
            )
    return None


def set_aside(folder: Path, kept: Path | None) -> None:
    """Delete what a killed run did not write to its end, and rename what is newer than the checkpoint to go on from.

    Left under its name, a newer checkpoint would outlive the whole ones when old checkpoints are deleted.

    Args:
        folder: The folder of the checkpoints.
        kept: The checkpoint to go on from; None: the run begins anew.
    """
    for checkpoint in checkpoints_in(folder):
        if not (checkpoint / COMPLETE).is_file():
            shutil.rmtree(checkpoint)
        elif kept is None or step_of(checkpoint) > step_of(kept):
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders that a run writes as checkpoints, whole or not."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[-1])


def _damage_of_best(checkpoint: Path) -> str | None:
    step = read_json(checkpoint / TRAINER_STATE_NAME).get("best_global_step")
    best = checkpoint.with_name(f"checkpoint-{step}")
    if not step or best == checkpoint:
        return None
    wrong = damage(best)
    return None if wrong is None else f"it needs {best.name}, which has the best score, and of that {wrong}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
