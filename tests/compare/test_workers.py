import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from samparser.compare import CellError, workers
from samparser.compare.plan import Cell

CELLS = [Cell("toy", "decoder", "seed", number) for number in range(4)]


@pytest.fixture
def two_threads(monkeypatch):
    """Workers whose tasks are a function of the test, in threads instead of processes."""

    def make(work):
        monkeypatch.setattr(workers, "_work", work)
        monkeypatch.setattr(workers.Workers, "_make_pool", lambda self, processes, one_thread: ThreadPoolExecutor(2))
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
