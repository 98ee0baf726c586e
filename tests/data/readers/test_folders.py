import os

import numpy as np
import pytest

from samparser.data import DataError, DataSettings, Skipped, detect_layout, open_dataset
from tests.data.files import picture, rectangle, save

MASK = rectangle(1, 1, 5, 5) | rectangle(10, 10, 20, 20)


def opened(root, split="train", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def whu(root, splits=("train", "val", "test")):
    for split in splits:
        for number in range(2):
            save(picture(seed=number), root / split / "image" / f"{number}.tif")
            save(MASK * np.uint8(255) if number else MASK, root / split / "label" / f"{number}.tif")
    return root


def test_whu_has_a_building_in_each_component(tmp_path):
    dataset = opened(whu(tmp_path), "test")
    assert (dataset.layout, dataset.classes) == ("whu", {1: "building"})
    assert dataset.names == ["test/image/0.tif", "test/image/1.tif"]
    for sample in dataset:  # labels of one bit and of 0 and 255
        assert [i.box for i in sample.instances] == [(1, 1, 5, 5), (10, 10, 20, 20)]


def test_a_tile_without_a_building_is_a_sample_without_instances_until_it_is_scanned(tmp_path):
    save(np.zeros((24, 32), np.uint8), whu(tmp_path) / "train/label/0.tif")
    assert [len(sample.instances) for sample in opened(tmp_path)] == [0, 2]
    scanned = opened(tmp_path, scan=True)
    assert scanned.names == ["train/image/1.tif"]
    assert scanned.skipped == [Skipped("train/image/0.tif", "no instance")]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("train/images", "train/masks"),
        ("img/train", "gt/train"),
        ("training/image", "training/mask"),
        ("Train/Images", "Train/Masks"),
        ("Images/train", "Masks/train"),
    ],
)
def test_folders_of_images_and_masks_are_found(tmp_path, images, masks):
    for number in range(10):
        save(picture(seed=number), tmp_path / images / f"{number}.jpg")
        save(MASK, tmp_path / masks / f"{number}.png")
    assert detect_layout(tmp_path) == "folders"
    dataset = opened(tmp_path)
    assert dataset.classes == {1: "object"}
    assert len(dataset) == (8 if images == "images" else 10)
    assert dataset.names[0].startswith(images + "/")
    assert [i.area for i in dataset[0].instances] == [16, 100]


def test_masks_may_have_an_ending_and_folders_may_be_nested(tmp_path):
    save(picture(), tmp_path / "images/day 1/a.png")
    save(MASK, tmp_path / "masks/day 1/a_mask.png")
    assert opened(tmp_path, "all").names == ["images/day 1/a.png"]


def test_folders_of_any_name_are_given_by_the_settings(tmp_path):
    for split in ("train", "val"):
        save(picture(), tmp_path / f"slides/{split}/a.png")
        save(MASK, tmp_path / f"outlines/{split}/a.png")
    settings = {"images": "slides/{split}", "masks": "outlines/{split}"}
    assert opened(tmp_path, "val", **settings).names == ["slides/val/a.png"]
    assert opened(tmp_path, "all", images="slides/train", masks="outlines/train").names == ["slides/train/a.png"]
    with pytest.raises(DataError, match="give both settings, images and masks"):
        opened(tmp_path, layout="folders", images="slides/train")


def test_images_without_a_mask_and_masks_without_an_image_are_counted(tmp_path):
    for name in ("a.png", "b.png", "c.png", "c.jpg"):
        save(picture(), tmp_path / "images" / name)
    for name in ("a.png", "c.png", "d.png"):
        save(MASK, tmp_path / "masks" / name)
    (tmp_path / "images/.DS_Store").write_text("")
    dataset = opened(tmp_path, "all")
    assert dataset.names == ["images/a.png"]
    assert sorted((skip.where.rpartition("/")[2], skip.why) for skip in dataset.skipped) == [
        ("b.png", "no mask file"),
        ("c.jpg", "several image files of one name"),
        ("c.png", "several image files of one name"),
        ("d.png", "mask without an image"),
    ]


def test_names_that_do_not_match_are_shown(tmp_path):
    save(picture(), tmp_path / "images/photo_1.png")
    save(MASK, tmp_path / "masks/outline_1.png")
    with pytest.raises(DataError, match=r"Images are named like photo_1\.png, masks like outline_1\.png"):
        opened(tmp_path)


def test_a_mask_of_another_size_than_its_image_is_explained(tmp_path):
    save(picture(48, 64), tmp_path / "images/a.png")
    save(MASK, tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"masks/a\.png has 32 x 24 px, but its image a\.png has 64 x 48"):
        opened(tmp_path, "all")[0]


def test_the_class_filter_and_the_smallest_area_work_on_masks(tmp_path):
    save(picture(), tmp_path / "images/a.png")
    save(rectangle(1, 1, 5, 5) * np.uint8(3) + rectangle(10, 10, 20, 20) * np.uint8(4), tmp_path / "masks/a.png")
    names = ["3=road", "4=car"]
    assert [i.class_id for i in opened(tmp_path, "all", class_names=names)[0].instances] == [3, 4]
    filtered = opened(tmp_path, "all", class_names=names, classes=["car"])
    assert (filtered.classes, [i.class_id for i in filtered[0].instances]) == ({4: "car"}, [4])
    assert [i.class_id for i in opened(tmp_path, "all", class_names=names, min_area=17)[0].instances] == [4]
    with pytest.raises(DataError, match="no class 'bus'"):
        opened(tmp_path, "all", class_names=names, classes=["bus"])


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/ISIC_01.jpg", "masks/ISIC_01_Segmentation.png"),
        ("images/a.jpg", "masks/a.jpg.png"),
        ("images/a.JPG", "masks/A_MASK.PNG"),
        ("images/a_sat.jpg", "masks/a_mask.png"),
        ("images/a.jpg", "masks/a_mask.gif"),
    ],
)
def test_masks_are_named_as_benchmarks_name_them(tmp_path, image, mask):
    save(picture(), tmp_path / image)
    save(MASK, tmp_path / mask)
    (sample,) = opened(tmp_path, "all")
    assert (sample.name, len(sample.instances)) == (image, 2)


def test_images_and_masks_may_lie_in_one_folder(tmp_path):
    for stem in ("benign (1)", "benign (2)"):
        save(picture(), tmp_path / f"busi/{stem}.png")
        save(MASK, tmp_path / f"busi/{stem}_mask.png")
        save(picture(), tmp_path / f"deepglobe/{stem}_sat.jpg")
        save(MASK, tmp_path / f"deepglobe/{stem}_mask.png")
    for folder, ending in (("busi", ".png"), ("deepglobe", "_sat.jpg")):
        dataset = opened(tmp_path, "all", images=folder, masks=folder)
        assert dataset.names == [f"{folder}/benign (1){ending}", f"{folder}/benign (2){ending}"]
        assert [len(sample.instances) for sample in dataset] == [2, 2]
        assert dataset.skipped == []


def test_hidden_files_and_folders_are_no_images(tmp_path):
    for folder, pixels in (("images", picture()), ("masks", MASK)):
        save(pixels, tmp_path / folder / "a.png")
        for hidden in (".ipynb_checkpoints/a-checkpoint.png", "._a.png", ".a.1f2e.tmp.png"):
            save(pixels, tmp_path / folder / hidden)
    dataset = opened(tmp_path, "all")
    assert (dataset.names, dataset.skipped) == (["images/a.png"], [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipes_are_left_out_by_a_scan(tmp_path):
    for name in ("a", "b", "c"):
        save(picture(), tmp_path / f"images/{name}.png")
        save(MASK, tmp_path / f"masks/{name}.png")
    for path in (tmp_path / "images/a.png", tmp_path / "masks/b.png"):
        path.unlink()
        os.mkfifo(path)
    dataset = opened(tmp_path, "all", scan=True)
    assert dataset.names == ["images/c.png"]
    assert [skip.why.partition(" is ")[2] for skip in dataset.skipped] == [
        "a pipe, a socket or a device and not a file."
    ] * 2
    os.mkfifo(tmp_path / "split.json")
    with pytest.raises(DataError, match=r"split\.json is a pipe"):
        opened(tmp_path, "train", split_file="split.json")
