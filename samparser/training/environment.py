"""What a result depends on beside its settings: versions of packages, and the state of the repository."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samparser._version import __version__

_PACKAGES = ("torch", "peft", "transformers", "accelerate", "safetensors", "numpy")


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
    """Return the commit of the working folder's repository and whether it has changes; None outside a repository.

    Nothing that the repository's own configuration names is run: git would call a monitor of the file system and
    filters of file contents, which in a stranger's folder are a stranger's programs.
    """
    where = folder or Path.cwd()
    try:
        commit = _git(where, "rev-parse", "HEAD").strip()
        # Exits with 1 where there are none.
        keys = _git(where, "config", "--name-only", "--get-regexp", r"^filter\..*", may_fail=True)
        off = ["-c", "core.fsmonitor=false"]
        for name in {match[1] for key in keys.splitlines() if (match := re.fullmatch(r"filter\.(.*)\.[^.]*", key))}:
            for program in ("clean", "smudge", "process"):
                off += ["-c", f"filter.{name}.{program}="]
            off += ["-c", f"filter.{name}.required=false"]
        changed = _git(where, *off, "status", "--porcelain", "--ignore-submodules=all")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed_files": len(changed.splitlines())}


def _git(folder: Path, *words: str, may_fail: bool = False) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=not may_fail)
    return done.stdout
