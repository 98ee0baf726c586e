import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from samparser.compare import CellError, on_pool, tasks, workers
from samparser.compare.plan import Cell

CELLS = [Cell("toy", "decoder", "seed", number) for number in range(4)]


@pytest.fixture
def two_threads(monkeypatch, tmp_path):
    """Workers whose tasks are a function of the test, in threads instead of processes."""

    def make(work):
        monkeypatch.setattr(on_pool, "_work", work)
        monkeypatch.setattr(on_pool, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(2))
        monkeypatch.setattr(workers.Place, "of", lambda workspace: None)
        crew = workers.Workers(None, 2)
        for cell in CELLS:
            crew.add(cell)
        return crew

    return make


def test_what_runs_beside_a_failure_still_gives_its_result_and_nothing_else_is_started(two_threads):
    failed, started = threading.Event(), []

    def work(cell, rates):
        started.append(cell)
        if cell.number == 0:
            failed.set()
            raise CellError("toy, decoder, seed 0 failed")
        failed.wait(5)
        return {"number": cell.number}

    results, given = two_threads(work).results(), []
    with pytest.raises(CellError, match="seed 0 failed"):
        given.extend(results)
    assert CELLS[0] in started
    assert given == [(cell, {"number": cell.number}) for cell in started if cell.number]
    assert len(started) < len(CELLS)


def test_a_process_that_is_ended_from_outside_is_told_with_what_to_do(two_threads):
    def work(cell, rates):
        raise BrokenProcessPool("gone")

    with pytest.raises(CellError, match=r"toy, decoder, seed \d failed: its process was ended.*fewer --processes"):
        list(two_threads(work).results())


def test_tasks_added_while_results_are_read_are_run(two_threads):
    crew = two_threads(lambda cell, rates: {"rates": rates})
    seen = []
    for cell, result in crew.results():
        seen.append(cell)
        if cell == CELLS[0]:
            crew.add(Cell("toy", "late", "seed", 0), {"learning_rate": 1.0})
        if cell.row == "late":
            assert result == {"rates": {"learning_rate": 1.0}}
    assert sorted(map(str, seen)) == sorted([*map(str, CELLS), "toy, late, seed 0"])


def test_what_fails_while_a_process_starts_is_told_with_the_task(monkeypatch, experiment, tmp_path):
    monkeypatch.setattr(on_pool, "_workspace", None)
    monkeypatch.setattr(on_pool, "_place", tasks.Place(experiment, tmp_path, tmp_path, None))
    for error in (MemoryError("no room"), SystemExit(0)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(tasks, "Workspace", fail)
        with pytest.raises(CellError, match=rf"toy, decoder, seed 0 failed: {type(error).__name__}: "):
            on_pool._work(CELLS[0], {})


@pytest.mark.skipif(os.name == "nt", reason="process groups of POSIX")
def test_ctrl_c_ends_all_processes_without_a_word_of_theirs(content, data_root, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps({**content, "training": {"num_train_epochs": 500}}))
    code = "import sys; from samparser.compare import compare, load_experiment\ncompare(load_experiment(sys.argv[1]), "
    code += "output=sys.argv[2], data_root=sys.argv[3], processes=2, cost=False)"
    arguments = [sys.executable, "-c", code, tmp_path / "small.json", tmp_path / "out", data_root]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs = tmp_path / "out" / "runs"
    while running.poll() is None and not list(logs.glob("*/log.jsonl")):
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode != 0
    assert said.count("Traceback") <= 1  # that of the process that was started here
    assert "Process" not in said
    for _ in range(100):  # multiprocessing's own helper ends a little later
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes are left over")
