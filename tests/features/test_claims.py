"""Who works at what: one process each, and nobody for a process that is gone."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

from samparser.features import claims as module
from samparser.features.claims import Claims


def test_a_part_is_one_process_s_until_it_is_given_back(tmp_path):
    folder = tmp_path / "claims"
    with Claims(folder) as mine, Claims(folder) as yours:
        assert mine.take("a")
        assert not yours.take("a")
        assert yours.take("b")
        mine.release("a")
        assert yours.take("a")
    assert not folder.exists()


def test_what_a_dead_process_of_this_machine_held_is_free_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "a").write_text(json.dumps({"host": socket.gethostname(), "pid": child.pid}))
    (tmp_path / "b").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    with Claims(tmp_path) as mine:
        assert mine.take("a")
        assert not mine.take("b")


def test_what_another_machine_held_is_free_when_it_shows_no_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    path = tmp_path / "a"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with Claims(tmp_path) as mine:
        # However old the file is by the other machine's clock.
        os.utime(path, (1, 1))
        assert not mine.take("a")
        time.sleep(0.25)
        os.utime(path)
        assert not mine.take("a")
        start = time.monotonic()
        mine.wait(["a"])
        assert time.monotonic() - start >= 0.2
        assert mine.take("a")
        assert not Claims(tmp_path).take("a")


def test_holders_show_life(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT", 0.02)
    with Claims(tmp_path) as mine:
        mine.take("a")
        os.utime(tmp_path / "a", (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / "a").stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_waiting_ends_when_one_of_the_parts_is_free(tmp_path):
    with Claims(tmp_path) as mine, Claims(tmp_path) as yours:
        mine.take("a")
        mine.take("b")
        timer = threading.Timer(0.1, mine.release, ["b"])
        timer.start()
        yours.wait(["a", "b"])
        assert [name for name in ("a", "b") if yours.take(name)] == ["b"]
        timer.join()


def test_a_claim_that_is_being_written_is_held(tmp_path):
    (tmp_path / "a").touch()
    with Claims(tmp_path) as mine:
        assert not mine.take("a")
