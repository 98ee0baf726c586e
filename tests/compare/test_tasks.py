import threading
import time

from samparser._lock import locked
from samparser.compare import tasks
from samparser.compare.cell import run_cell
from samparser.compare.plan import Cell
from samparser.compare.workspace import Workspace

CELL = Cell("toy", "zero-shot", "once")


def test_a_task_that_another_process_runs_is_waited_for_and_its_result_taken(
    experiment, data_root, tmp_path, monkeypatch
):
    workspace = Workspace(experiment, data_root, tmp_path, None)
    monkeypatch.setattr(tasks, "_SECONDS_BETWEEN_LOOKS", 0.01)
    first = tasks.do(workspace, CELL, {})
    monkeypatch.setattr(tasks, "run_cell", lambda *_: {}["run twice"])
    log, given = tmp_path / "logs" / f"{CELL.name}.log", []
    with locked(log.parent, f"{CELL.name}.lock"):
        waiting = threading.Thread(target=lambda: given.append(tasks.do(workspace, CELL, {})))
        waiting.start()
        while "Another command runs this" not in log.read_text("utf-8"):
            time.sleep(0.01)
        assert not given
    waiting.join(30)
    assert given[0]["units"] == first["units"]
    assert log.read_text("utf-8").count("Another command runs this") == 1


def test_another_machine_gets_paths_that_hold_in_any_folder_and_gives_errors_as_text(
    experiment, data_root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(experiment, data_root, tmp_path / "out", None)
    place = tasks.Place.of(workspace)
    assert place.experiment.file == tmp_path / "experiment.json"
    assert all(path.is_absolute() for path in (place.root, place.output))
    monkeypatch.setattr(tasks, "run_cell", lambda *_: {}["nothing"])
    threads: list[int] = []
    monkeypatch.setattr(tasks.torch, "set_num_threads", threads.append)
    assert tasks.do_elsewhere(place, CELL, {}, 3)["failed"].startswith("toy, zero-shot failed: KeyError: 'nothing'")
    assert threads == [3]
    monkeypatch.setattr(tasks, "run_cell", run_cell)
    result = tasks.do_elsewhere(place, CELL, {}, 3)["result"]
    assert tasks.finished(workspace, CELL, {})["units"] == result["units"]
