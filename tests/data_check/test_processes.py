import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samparser.data import DataSettings, open_dataset
from samparser.data_check import check_dataset, processes
from tests.data.files import picture, polygon, save, write_coco

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """Two splits with all that a report tells of: what is left out, does not open, occurs twice, is warned of."""
    for split, images in (("train", 40), ("val", 9)):
        names = [(n, f"{n:03d}.png") for n in range(images)]
        for n, name in names:
            save(picture(seed=n % 30), tmp_path / split / name)
        rows = [
            {"image_id": n // 3, "segmentation": polygon(n % 7, 1, 9 + n % 5, 4 + n % 11)} for n in range(3 * images)
        ]
        rows[4]["segmentation"] = [[1, 1, 2, 2]]
        rows[9:12] = [row | {"segmentation": [[1, 1, 2, 2]]} for row in rows[9:12]]
        write_coco(tmp_path / f"annotations/{split}.json", names, rows)
    (tmp_path / "train/011.png").write_bytes(b"broken")
    (tmp_path / "val/005.png").write_bytes(b"broken")
    return tmp_path


def checked(root, number):
    return check_dataset(DataSettings(data=str(root), min_area=20), progress=False, processes=number)


def same(one, other):
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(mine, its) if field.name == "areas" else mine == its, field.name
    return str(one) == str(other)


@pytest.mark.parametrize("way", ["forked where that is safe", "spawned"])
def test_two_processes_find_what_one_finds(root, monkeypatch, way):
    alone = checked(root, 1)
    assert alone.instances["train"] > 90
    assert len(alone.unreadable) == 2
    assert len(alone.warnings) >= 2
    if way == "spawned":
        monkeypatch.setattr(processes, "_context", lambda: processes.multiprocessing.get_context("spawn"))
    assert same(checked(root, 2), alone)


def started(root, before, *options):
    """The command in a process of its own, where it forks; `before` is what happens to the library first."""
    code = (
        f"import sys, os, time\nfrom samparser.data_check import processes\n{before}\n"
        f"from samparser.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["data", "check", str(root), "--contact_sheet", "none", "--min_area", "20", *options]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


SLOWLY = """
find = processes.find
processes.find = lambda *at: (os.write(1, b"%d\\n" % os.getpid()), time.sleep(0.2), find(*at))[2]
"""


def test_a_process_that_is_ended_from_outside_is_an_error_with_the_place(root):
    before = "find = processes.find\nprocesses.find = lambda part, d, i: os._exit(9) if i == 21 else find(part, d, i)"
    out, err = started(root, before, "--processes", "2").communicate(timeout=120)
    assert out == ""
    assert "One of the 2 processes that read was ended from outside or crashed, between train/0" in err
    assert "set fewer processes" in err
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_ctrl_c_ends_all_processes_without_a_traceback(root):
    command = started(root, SLOWLY, "--processes", "2")
    pids = {int(command.stdout.readline()) for _ in range(4)}
    os.killpg(command.pid, signal.SIGINT)
    _, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert len(pids) == 2
    assert command.pid not in pids
    ended(pids)


def test_processes_end_with_the_first_one_however_it_ends(root):
    command = started(root, SLOWLY, "--processes", "2")
    pids = {int(command.stdout.readline()) for _ in range(4)}
    command.kill()
    command.wait(timeout=60)
    command.stdout.close()
    command.stderr.close()
    ended(pids)


def ended(pids):
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"one of {pids} goes on"
        time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


class Counting(ThreadPoolExecutor):
    """Threads in place of processes, that count the answers which nobody has taken yet."""

    def __init__(self):
        super().__init__(2)
        self.untaken = self.most = 0

    def submit(self, work, *arguments):
        self.untaken += 1
        self.most = max(self.most, self.untaken)
        future = super().submit(work, *arguments)
        result = future.result

        def taken():
            self.untaken -= 1
            return result()

        future.result = taken
        return future


def test_answers_come_in_order_and_few_of_them_wait(coco_root, monkeypatch):
    datasets = {part: open_dataset(DataSettings(data=str(coco_root)), part) for part in ("train", "val")}
    datasets["train"] = datasets["train"].subset([0, 1, 2] * 30)
    monkeypatch.setattr(processes, "_datasets", datasets)
    monkeypatch.setattr(processes, "_stopped", SimpleNamespace(value=0))
    with warnings.catch_warnings(), Counting() as pool:
        found = [(one.part, one.index) for one in processes._in_order(pool, datasets, 2, 4)]
    assert found == [("train", n) for n in range(90)] + [("val", 0)]
    assert pool.most == 6


def test_as_many_processes_as_a_set_is_worth(monkeypatch, coco_root):
    dataset = open_dataset(DataSettings(data=str(coco_root)), "train")
    asked = []
    monkeypatch.setattr(processes, "_cores", lambda: 4)
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda number, *_: asked.append(number) or FakePool())
    monkeypatch.setattr(processes, "_in_order", lambda *_: iter(()))
    for images, number in ((499, None), (500, None), (5000, None), (3, 8)):
        list(processes.findings({"train": dataset.subset([0] * images)}, number))
    assert asked == [2, 4, 3]


class FakePool:
    def shutdown(self, **_):
        pass


def test_fewer_than_one_process_is_refused(coco_root):
    with pytest.raises(ValueError, match=r"processes is 0; it must be at least 1\."):
        checked(coco_root, 0)
