"""What an inspection may replace in its folder."""

import json

import pytest

from samparser.inspection.output_folder import InspectionFolder


def fill(path):
    folder = InspectionFolder(path)
    folder.check(["a.png"], ["made"])
    path.mkdir(exist_ok=True)
    (path / "a.png").write_bytes(b"picture")
    folder.add(path / "a.png")
    (path / "made").mkdir(exist_ok=True)
    (path / "made" / "weights").write_bytes(b"numbers")
    folder.add(path / "made")
    folder.finish({"found": 1})


def test_its_own_files_are_replaced_and_named(tmp_path):
    fill(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert content["found"] == 1
    assert set(content["files"]) == {"a.png", "made/weights"}
    fill(tmp_path / "out")
    other = InspectionFolder(tmp_path / "out")
    other.finish({})
    assert set(json.loads((tmp_path / "out" / "inspection.json").read_text())["files"]) == {"a.png", "made/weights"}


@pytest.mark.parametrize("name", ["a.png", "made/weights", "made/further", "inspection.json"])
def test_files_of_somebody_else_are_never_replaced(tmp_path, name):
    fill(tmp_path / "out")
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"would replace: .*{name}"):
        InspectionFolder(tmp_path / "out").check(["a.png"], ["made"])
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_killed_inspection_may_be_done_again(tmp_path):
    folder = InspectionFolder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"picture")
    folder.add(tmp_path / "a.png")
    assert json.loads((tmp_path / "inspection.json").read_text())["unfinished"] is True
    InspectionFolder(tmp_path).check(["a.png"])


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        InspectionFolder(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made").write_text("")
    with pytest.raises(ValueError, match="would replace"):
        InspectionFolder(tmp_path / "out").check([], ["made"])


def test_two_at_once_do_not_write_into_one_folder(tmp_path):
    first, second = InspectionFolder(tmp_path / "out"), InspectionFolder(tmp_path / "out")
    with first.writing(), pytest.raises(BlockingIOError, match="is being written by"), second.writing():
        pass
    assert list((tmp_path / "out").iterdir()) == []
