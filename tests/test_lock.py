"""One process writes an output folder at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from samparser._lock import LOCK, FolderLocked, locked

HOLD = """
import sys, time
from pathlib import Path
from samparser._lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

WHAT_TO_DO = r"\. Wait for it or stop it, or choose another output folder\.$"


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_is_held_by_one_process_and_the_other_is_told_which(holder, tmp_path):
    message = rf"another process \(pid {holder.pid} on .*, since 20.*\){WHAT_TO_DO}"
    with pytest.raises(FolderLocked, match=message) as error, locked(tmp_path):
        pass
    assert str(error.value).startswith(f"{tmp_path} is being written by ")
    assert isinstance(error.value, BlockingIOError)
    assert (tmp_path / LOCK).is_file()


def test_the_lock_of_a_killed_process_holds_nobody_up(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path) as alone:
        assert alone
    assert not (tmp_path / LOCK).exists()


def test_a_lock_is_given_back_after_an_error_and_a_damaged_one_does_no_harm(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\xff\x00[[")
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path), pytest.raises(FolderLocked, match="another run in this process"), locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_drive_without_locks_is_used_without_one(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with locked(tmp_path) as alone:
        assert not alone


def test_a_link_in_place_of_the_lock_is_not_written_through(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(elsewhere)
    with pytest.raises(OSError, match=r"run/\.lock"), locked(tmp_path / "run"):
        pass
    assert elsewhere.read_text() == "kept"
