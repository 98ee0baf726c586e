"""The lab: runs verbs under strikes, looks at what they left, and counts what was tried."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The short campaign is part of `make test`; `make robustness` runs the long one.
LONG = os.environ.get("SAMPARSER_ROBUSTNESS") == "long"
SEED = int(os.environ.get("SAMPARSER_ROBUSTNESS_SEED", "0"))


@dataclass(frozen=True)
class Ran:
    """How a verb ended: its exit status ("timeout" if it was stopped) and all that it printed."""

    status: int | str
    output: str

    def fault(self, allowed: tuple[int, ...] = (0, 2)) -> str | None:
        """What is wrong with the way it ended, or None: a traceback, a hang, another status, no message."""
        if "Traceback (most recent call last)" in self.output:
            last = [line for line in self.output.splitlines() if line and not line.startswith(" ")][-1]
            return f"traceback: {last[:200]}"
        if self.status not in allowed:
            return f"status {self.status}: {self.output[-200:]!r}"
        if self.status == 2 and self.output.count("error: ") < 1:
            return f"status 2 without a message: {self.output[-200:]!r}"
        return None


@dataclass
class Tally:
    """What a group of cases came to."""

    group: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, case: str, fault: str | None) -> None:
        """Count a case; a fault that is not None is a failure."""
        self.tried += 1
        if fault is not None:
            self.failures.append(f"{case}: {fault}")

    def check(self) -> None:
        """Fail the test if a case failed, with all of them."""
        if self.failures:
            raise AssertionError(f"{len(self.failures)} of {self.tried} failed:\n  " + "\n  ".join(self.failures))


class Lab:
    """Runs verbs in forks of a process that has imported everything.

    Args:
        folder: For the output of the verbs and for copies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tallies: list[Tally] = []
        self._number = 0
        self._undisturbed: dict[tuple[str, ...], tuple[int, Any]] = {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.robustness.zygote"]
        self._errors = (folder / "zygote.txt").open("w")
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=-1, stdout=-1, stderr=self._errors
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The zygote ended: {(self.folder / 'zygote.txt').read_text()[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._errors.close()

    def together(self, *jobs: dict[str, Any]) -> list[Ran]:
        """Run several jobs at the same time."""
        for job in jobs:
            job["arguments"] = [str(word) for word in job["arguments"]]
            job.setdefault("folder", str(self.folder))
            job["output"] = str(self.folder / f"output-{len(self.tallies)}-{self._number}.txt")
            self._number += 1
        assert self._process.stdin is not None
        print(json.dumps(jobs), file=self._process.stdin, flush=True)
        ran = [Ran(**answer) for answer in self._answer()]
        for job in jobs:
            Path(job["output"]).unlink()
        return ran

    def run(self, *arguments: object, **options: Any) -> Ran:
        """Run one verb to its end."""
        return self.together({"arguments": list(arguments), **options})[0]

    def undisturbed(self, folder: Path, words: Sequence[object], result: Callable[[], Any]) -> tuple[int, Any]:
        """Run a verb as it should go, once in a campaign, and leave its folder empty.

        Args:
            folder: Where it writes; only the rest of the words tells one verb from another.
            words: The verb with its options.
            result: Reads what it comes to.

        Returns:
            How many changes below the folder it makes, and its result.
        """
        key = tuple(str(word).replace(str(folder), "") for word in words)
        if key not in self._undisturbed:
            ran = self.run(*words, strike={"folder": str(emptied(folder)), "kind": "count", "at": 0})
            assert ran.status == 0, ran.output
            self._undisturbed[key] = int(ran.output.rsplit("operations ", 1)[1]), result()
        emptied(folder)
        return self._undisturbed[key]

    @contextmanager
    def group(self, name: str) -> Iterator[Tally]:
        """A group of cases; the test fails at its end if a case did."""
        tally = Tally(name)
        self.tallies.append(tally)
        yield tally
        tally.check()


def chosen(total: int, short: int, rng: Any) -> list[int]:
    """Numbers below a total: all of them in the long campaign, so many drawn ones in the short one."""
    return list(range(total)) if LONG or total <= short else sorted(rng.sample(range(total), short))


def digests(folder: Path, *, hidden: bool = False) -> dict[str, str]:
    """A hash of every file below a folder by its path; hidden files, which killed writers leave, only on demand."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (hidden or not any(part.startswith(".") for part in path.relative_to(folder).parts))
    }


def emptied(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder in place of whatever is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
