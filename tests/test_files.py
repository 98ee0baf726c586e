import os
import stat

import pytest

from samparser._files import replacing


def test_the_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "card.md"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "card.md"
    path.write_text("old")

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_the_old_file_or_of_any_new_one(tmp_path):
    path, plain = tmp_path / "card.md", tmp_path / "plain"
    plain.touch()
    with replacing(path) as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
