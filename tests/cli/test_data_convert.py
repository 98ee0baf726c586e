import shutil

from samparser.cli import main
from samparser.data import DataSettings, open_dataset


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_data_set_is_written_for_another_tool_and_the_summary_counts(capsys, toy_coco, tmp_path):
    status, out, _ = run(capsys, "data", "convert", toy_coco, tmp_path / "out", "--to", "yolo", "--files", "link")
    assert status == 0
    assert f"{tmp_path / 'out'} (layout yolo)" in out
    assert "train  6 images, 18 instances" in out
    assert "val    6 images, 18 instances" in out
    dataset = open_dataset(DataSettings(data=str(tmp_path / "out")), "val")
    assert (dataset.layout, len(dataset), set(dataset.classes.values())) == ("yolo", 6, {"cell", "blob"})


def test_images_that_cannot_be_read_are_named_and_end_with_status_one(capsys, toy_coco, tmp_path):
    shutil.copytree(toy_coco, tmp_path / "set")
    (tmp_path / "set/train/train-001.png").write_bytes(b"cut")
    status, out, _ = run(capsys, "data", "convert", tmp_path / "set", tmp_path / "out", "--to", "coco")
    assert status == 1
    assert "cannot be read, left out: " in out
    assert "train-001.png is not an image" in out
    assert "train  5 images, 15 instances" in out


def test_a_folder_that_is_not_empty_and_a_format_that_is_not_known_are_refused(capsys, toy_coco, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    status, _, err = run(capsys, "data", "convert", toy_coco, tmp_path, "--to", "coco")
    assert status == 2
    assert "is there already and is not an empty folder" in err
    status, _, err = run(capsys, "data", "convert", toy_coco, tmp_path / "out", "--to", "kitti")
    assert status == 2
    assert "There is no format 'kitti' to write; choose from coco, yolo" in err
