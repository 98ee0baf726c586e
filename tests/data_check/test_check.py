import json

import numpy as np
import pytest
from PIL import Image

from samparser.data import DataSettings
from samparser.data_check import check_dataset
from tests.data.files import picture, polygon, rectangle, save, write_coco


def checked(root, split="all", sheet=None, **settings):
    return check_dataset(DataSettings(data=str(root), **settings), split, sheet, progress=False)


def test_a_good_set_is_counted_and_usable(coco_root):
    report = checked(coco_root)
    assert report.usable
    assert report.layout == "coco"
    assert report.images == {"train": 3, "val": 1}
    assert report.instances == {"train": 4, "val": 1}
    assert report.classes == {"cat": 3, "dog": 2}
    assert report.sizes == {(32, 24): 4}
    assert report.areas.tolist() == [36, 48, 49, 60, 220]
    assert report.most_instances == 2
    assert report.skipped == report.unreadable == report.errors == []
    text = str(report)
    for line in (
        "train         3 images          4 instances",
        "smallest 36, median 49, largest 220 px",
        "cat 3, dog 2",
    ):
        assert line in text
    assert text.endswith("This data set can be trained on.")


def test_one_split_may_be_checked_alone(coco_root):
    assert checked(coco_root, "val").images == {"val": 1}


def test_what_is_left_out_is_grouped_by_reason(coco_root):
    (coco_root / "train2017/000000000000.png").unlink()
    report = checked(coco_root, min_area=49)
    assert report.usable
    assert "left out: 1 x smaller than 49 px (" in str(report)
    assert "left out: 1 x image file missing (000000000000.png)" in str(report)


def test_a_broken_image_makes_it_unusable_unless_scanned(coco_root):
    (coco_root / "train2017/000000000000.png").write_bytes(b"x")
    report = checked(coco_root)
    assert not report.usable
    assert [skip.where for skip in report.unreadable] == ["train2017/000000000000.png"]
    assert "1 image cannot be read and would stop a training run" in str(report)
    assert checked(coco_root, scan=True).usable


def test_what_does_not_open_at_all_is_an_error_in_the_report(tmp_path):
    report = checked(tmp_path / "gone")
    assert not report.usable
    assert "gone does not exist" in report.errors[0]
    assert str(report).endswith("This data set cannot be trained on as it is.")


def test_the_same_image_in_two_splits_is_found_by_its_pixels(coco_root):
    Image.open(coco_root / "train2017/000000000000.png").save(coco_root / "val2017/000000000003.png", compress_level=0)
    (warning,) = [text for text in checked(coco_root).warnings if "more than one split" in text]
    assert warning.startswith("1 images are in")
    assert "train2017/000000000000.png (train) and val2017/000000000003.png (val)" in warning


def test_an_image_twice_in_train_and_once_in_val_names_one_of_each(coco_root):
    first = (coco_root / "train2017/000000000000.png").read_bytes()
    for name in ("train2017/000000000001.png", "val2017/000000000003.png"):
        (coco_root / name).write_bytes(first)
    (warning,) = [text for text in checked(coco_root).warnings if "more than one split" in text]
    assert "train2017/000000000000.png (train) and val2017/000000000003.png (val) for instance" in warning


def test_what_reading_warns_of_stands_in_the_report(coco_root):
    (coco_root / "val2017/000000000003.png").rename(coco_root / "val2017/000000000003.PNG")
    assert any("files with the same end of their name" in text for text in checked(coco_root).warnings)


def own(tmp_path, annotations, count=1):
    for number in range(count):
        save(picture(seed=number), tmp_path / f"images/{number}.png")
    write_coco(tmp_path / "annotations.json", [(n, f"{n}.png") for n in range(count)], annotations, {1: "a", 2: "b"})
    return tmp_path


@pytest.mark.parametrize(
    ("annotations", "warning"),
    [
        ([{"image_id": 0, "segmentation": polygon(1, 1, 9, 9)}] * 2, "1 instances repeat another one"),
        ([{"image_id": 0, "segmentation": polygon(1, 1, 9, 9)}], "1 of 2 classes never occur: b"),
        ([{"image_id": 0, "segmentation": polygon(1, 1, 3, 3)}], "1 instance has fewer than 10 px"),
        ([{"image_id": 0, "segmentation": polygon(0, 0, 32, 23)}], "the median mask covers over 80 % of its image"),
        ([{"image_id": 0, "segmentation": polygon(1, 1, 9, 9)}], "median shorter side of a box is 8 px"),
        ([{"image_id": 0, "segmentation": polygon(n, 1, 9 + n, 9)} for n in range(12)], "filled rectangles"),
    ],
)
def test_likely_mistakes_are_warned_of(tmp_path, annotations, warning):
    report = checked(own(tmp_path, annotations), val_ratio=0.0)
    assert report.usable
    assert any(warning in text for text in report.warnings), report.warnings


def test_names_that_steer_a_terminal_are_shown_as_written(tmp_path):
    root = own(tmp_path, [{"image_id": 0, "segmentation": polygon(1, 1, 9, 9)}])
    file = root / "annotations.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "\n\x1b[31mred"
    file.write_text(json.dumps(content))
    report = checked(root, val_ratio=0.0, sheet=tmp_path / "sheet.png")
    assert "  classes: \\n\\x1b[31mred 1\n" in str(report)
    assert report.contact_sheet.is_file()


def test_an_image_twice_in_a_split_is_warned_of(tmp_path):
    root = own(tmp_path, [{"image_id": n, "segmentation": polygon(1, 1, 9, 9)} for n in range(2)], 2)
    save(picture(seed=0), root / "images/1.png")
    report = checked(root, val_ratio=0.0)
    assert any("1 images occur twice in a split, images/0.png = images/1.png" in text for text in report.warnings)


def test_the_contact_sheet_is_written_with_a_cell_for_each_image(coco_root, tmp_path):
    path = tmp_path / "sheets/sheet.png"
    report = checked(coco_root, sheet=path)
    assert report.contact_sheet == path
    assert str(path) in str(report)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] > 4 * 480  # four cells, each 480 px wide, in one row
    assert sheet.shape[0] < 2 * 480
    coloured = np.ptp(sheet.astype(int), axis=2) > 40
    assert coloured.mean() > 0.1
    assert not list(path.parent.glob(".*"))


def test_no_sheet_is_drawn_when_there_is_nothing_to_show(tmp_path):
    assert checked(tmp_path, sheet=tmp_path / "sheet.png").contact_sheet is None
    assert not (tmp_path / "sheet.png").exists()


def test_a_hundred_instances_of_several_classes_fit_on_a_sheet(tmp_path):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [300, 200], (100, 2)).tolist()
    save(picture(240, 360), tmp_path / "images/a.png")
    annotations = [
        {"image_id": 0, "category_id": 1 + n % 2, "segmentation": polygon(x, y, x + 20, y + 15)}
        for n, (x, y) in enumerate(corners)
    ]
    write_coco(tmp_path / "annotations.json", [(0, "a.png")], annotations, {1: "a" * 90, 2: "b"}, (240, 360))
    assert checked(tmp_path, "all", tmp_path / "sheet.png", val_ratio=0.0).contact_sheet is not None


def test_folders_of_masks_are_checked_too(tmp_path):
    for number in range(5):
        save(picture(seed=number), tmp_path / f"images/{number}.png")
        save(rectangle(1, 1, 12, 12) * np.uint8(number * 60), tmp_path / f"masks/{number}.png")
    report = checked(tmp_path)
    assert not report.usable
    assert all("besides 0, and it is not known what they mean" in skip.why for skip in report.unreadable)
    assert "  cannot be read: " in str(report)
