"""The zygote: a process with everything imported that runs verbs of the command in forks of itself.

Importing takes seconds, a fork none.

Reads jobs as JSON, one list a line; runs the jobs of a list at the same time; answers with one list of results a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def _import_all() -> Any:
    import matplotlib.figure
    import torch

    import samparser.cli
    import samparser.compare
    import samparser.data_check
    import samparser.drawing.contact_sheet
    import samparser.features.cache
    import samparser.methods
    import samparser.prediction
    import samparser.training

    torch.set_num_threads(1)
    # Drawing takes longer than all the rest of a verb; that the file is written is what matters here.
    matplotlib.figure.Figure.savefig = lambda self, path: Path(path).write_bytes(b"a figure")
    return samparser.cli.main


def _run(main: Any, job: dict[str, Any]) -> None:
    """The child: never returns."""
    from tests.robustness.strikes import Strike, limit

    status = 1
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    strike = None
    try:
        os.chdir(job["folder"])
        os.environ.update(job.get("environment", {}))
        if "strike" in job:
            strike = Strike(**job["strike"])
            strike.install()
        limit(job.get("file_bytes"), job.get("memory_bytes", 4 << 30))
        status = main(job["arguments"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        if strike is not None and strike.kind == "count":
            print(f"operations {strike.count}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(children: list[int], seconds: float) -> list[Any]:
    """Exit statuses; "timeout" for a child that did not end in time."""
    results: dict[int, Any] = {}
    end = time.monotonic() + seconds
    while len(results) < len(children):
        for child in children:
            if child in results:
                continue
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                results[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                results[child] = "timeout"
        time.sleep(0.002)
    return [results[child] for child in children]


def serve() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main = _import_all()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        jobs = json.loads(line)
        children = []
        for job in jobs:
            child = os.fork()
            if child == 0:
                _run(main, job)
            children.append(child)
        statuses = _wait(children, max(job.get("seconds", 60) for job in jobs))
        outputs = [Path(job["output"]).read_text("utf-8", "replace") for job in jobs]
        answer = [{"status": s, "output": o} for s, o in zip(statuses, outputs, strict=True)]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
