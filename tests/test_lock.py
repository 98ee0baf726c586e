import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from samparser.training.lock import LOCK, FolderLocked, locked

HOLD = """
import sys, time
from pathlib import Path
from samparser.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_folder_is_held_by_one_process_and_the_other_is_told_which(holder, tmp_path):
    with pytest.raises(FolderLocked, match=rf"another process \(pid {holder.pid} on .*, since 20"), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).is_file()


def test_the_lock_of_a_killed_process_holds_nobody_up(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        pass
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
    with locked(tmp_path):
        pass
