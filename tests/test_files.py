import os
import stat

import pytest

from samparser._files import filling_folder, no_folder, replacing, replacing_folder, write_text


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


def test_a_file_planted_where_temporary_files_go_is_never_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr("samparser._files.uuid.uuid4", lambda: type("Known", (), {"hex": "0"}))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".card.0.tmp.md").symlink_to(victim)
    with pytest.raises(FileExistsError), replacing(tmp_path / "card.md") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "mine"


def test_a_folder_appears_whole_or_not_at_all_and_replaces_nothing(tmp_path):
    with replacing_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
    with pytest.raises(FileExistsError, match="is there already"), replacing_folder(tmp_path / "out"):
        pass

    def fail_half_way():
        with replacing_folder(tmp_path / "other") as temporary:
            (temporary / "a").write_text("1")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("writer", [replacing_folder, filling_folder])
def test_the_folder_that_a_link_leads_to_is_filled_where_it_lies(writer, tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "out"
    (disk / "real").mkdir(parents=True)
    link.symlink_to(disk / "real")
    with writer(link) as temporary:
        assert temporary.parent == disk  # nothing can be moved from one disk to another
        (temporary / "a").write_text("1")
    assert link.is_symlink()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "disk", "disk/real", "disk/real/a", "out",
    ]  # fmt: skip
    (disk / "real").rename(disk / "moved")
    with pytest.raises(NotADirectoryError, match="out is a link to what is not there"), writer(link):
        pass


def test_what_can_be_no_folder_says_why(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "here").symlink_to(tmp_path)
    for path in (tmp_path, tmp_path / "new" / "newer", tmp_path / "here" / "new"):
        assert no_folder(path) is None
    for path in (tmp_path / "file", tmp_path / "file" / "new"):
        assert no_folder(path) == f"{tmp_path / 'file'} is a file"
    for path in (tmp_path / "dangling", tmp_path / "dangling" / "new"):
        assert no_folder(path) == f"{tmp_path / 'dangling'} is a link to what is not there"
    monkeypatch.chdir(tmp_path)
    assert (no_folder("new"), no_folder("file/new")) == (None, "file is a file")


def test_whoever_reads_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        write_text(path, "newer")
        assert reader.read() == "old"
    assert path.read_text() == "newer"


def test_a_folder_is_filled_file_by_file_the_telling_ones_last_and_keeps_what_else_it_holds(tmp_path, monkeypatch):
    out, moved = tmp_path / "out", []
    out.mkdir()
    (out / "notes").write_text("mine")
    (out / "b").write_text("old")
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: moved.append(target.name) or original(source, target))
    with filling_folder(out, last=("a", "b")) as temporary:
        for name in ("b", "a", "z"):
            (temporary / name).write_text("new")
    assert moved == ["z", "a", "b"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "notes": "mine",
        "a": "new",
        "b": "new",
        "z": "new",
    }
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_whose_filling_fails_is_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("old")

    def fail_half_way():
        with filling_folder(tmp_path / "out") as temporary:
            (temporary / "b").write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail_half_way()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "b"]
    assert (tmp_path / "out" / "b").read_text() == "old"


def test_folders_that_killed_processes_left_are_deleted_once_they_are_old(tmp_path):
    given = (("a[1]", "0"), ("a[1]", "1"), ("b", "2"))
    old, young, other = (tmp_path / f".{name}.{digit * 32}.partial" for name, digit in given)
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "weights").write_text("half")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    with replacing_folder(tmp_path / "a[1]") as temporary:
        (temporary / "weights").write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([young, other, tmp_path / "a[1]"])


@pytest.mark.parametrize("words", ["No space left on device (os error 28)", "PytorchStreamWriter failed writing file"])
@pytest.mark.parametrize("write", [replacing, replacing_folder, filling_folder])
def test_a_full_disk_is_named_by_what_was_to_be_written(write, words, tmp_path):
    def fill():
        with write(tmp_path / "out"):
            raise RuntimeError(words)

    with pytest.raises(OSError, match=r"no space left to write it; what was there before is as it was .*/out'"):
        fill()
    assert list(tmp_path.iterdir()) == []
