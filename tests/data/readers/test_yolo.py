from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samparser.data import DataError, DataSettings, DataWarning, Skipped, detect_layout, open_dataset
from tests.data.files import full_mask, picture, rectangle, save


def line(class_id, *points, height=24, width=32):
    return " ".join([str(class_id), *(f"{x / width:.6f} {y / height:.6f}" for x, y in points)])


def box(x0, y0, x1, y1):
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


STAR = ((3.2, 2.1), (20.7, 5.5), (28.1, 21.9), (11.4, 13.0))
YAML = "path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  3: big dog\n"
NAMES = "names: [cat, x, y, big dog]\n"


@pytest.fixture
def root(tmp_path):
    """The folders of Ultralytics: two images to train on, one to validate with and one without objects."""
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c"), ("val", "d")):
        save(picture(), tmp_path / f"images/{split}/{stem}.png")
    labels = {
        "train/a": [line(3, *STAR), line(0, *box(1, 1, 9, 8)), ""],
        "train/b": [line(0, *box(4, 4, 20, 20))],
        "val/c": [line(3, *box(0, 0, 32, 24))],
        "val/d": [],
    }
    for name, lines in labels.items():
        path = tmp_path / f"labels/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text(YAML)
    return tmp_path


def opened(root, split="all", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def test_lines_are_the_objects_that_pycocotools_draws_with_their_names(root):
    dataset = opened(root, "train")
    assert (dataset.layout, dataset.classes) == ("yolo", {0: "cat", 3: "big dog"})
    assert dataset.names == ["images/train/a.png", "images/train/b.png"]
    sample = dataset[0]
    flat = [round(v / s, 6) * s for point in STAR for v, s in zip(point, (32, 24), strict=True)]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([flat], 24, 32))).astype(bool)
    assert [(i.id, i.class_id) for i in sample.instances] == [("line 1", 3), ("line 2", 0)]
    assert np.array_equal(full_mask(sample.instances[0], 24, 32), expected)
    assert np.array_equal(full_mask(sample.instances[1], 24, 32), rectangle(1, 1, 9, 8))


def test_an_image_without_lines_is_left_out_and_said(root):
    dataset = opened(root, "val")
    assert (dataset.names, dataset.skipped) == (["images/val/c.png"], [Skipped("images/val/d.png", "no instance")])


def test_the_yaml_file_itself_may_be_named(root):
    assert opened(root / "data.yaml").names == opened(root).names


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            "{split}/{kind}",
            f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n{NAMES}",
        ),
        ("{kind}/{split}", f"train: [images/train]\nval: lists/val.txt\n{NAMES}"),
        ("{kind}/{split}", f"{NAMES}nc: 4\n"),
    ],
    ids=["Roboflow", "lists", "no parts named"],
)
def test_parts_lie_where_the_yaml_says_or_where_they_usually_do(root, form, text):
    if form.startswith("{split}"):
        for split, word in (("train", "train"), ("val", "valid")):
            for kind in ("images", "labels"):
                (root / word).mkdir(exist_ok=True)
                (root / kind / split).rename(root / word / kind)
    (root / "lists").mkdir()
    (root / "lists/val.txt").write_text("./images/val/c.png\n")
    (root / "data.yaml").write_text(text)
    assert [len(opened(root, split)) for split in ("train", "val")] == [2, 1]
    assert opened(root, "train").classes == {0: "cat", 1: "x", 2: "y", 3: "big dog"}


def test_without_a_yaml_names_are_those_of_classes_txt_or_the_numbers(root):
    (root / "data.yaml").unlink()
    with pytest.warns(DataWarning, match=r"no data.yaml with names nor a classes.txt; the 2 classes are called by"):
        assert opened(root, "train").classes == {0: "0", 3: "3"}
    (root / "classes.txt").write_text("cat\n\na\nb\nbig dog\n")
    assert detect_layout(root) == "yolo"
    assert opened(root, "train").classes == {0: "cat", 1: "a", 2: "b", 3: "big dog"}


def test_a_pool_of_images_is_divided_by_ratio(tmp_path):
    for number in range(5):
        save(picture(), tmp_path / f"images/{number}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/{number}.txt").write_text(line(0, *box(1, 1, 9, 8)))
    (tmp_path / "classes.txt").write_text("cat\n")
    assert (len(opened(tmp_path)), len(opened(tmp_path, "train")), len(opened(tmp_path, "val"))) == (5, 4, 1)


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        ("0 0.1 0.1 0.5 0.5", "no segmentation, only a box"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.9", "line that is not a class and at least three x, y pairs"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5", "polygon with a number that is not finite"),
        ("0 0.1 0.1 0.5 x 0.5 0.5", "polygon with something that is not a number"),
        ("0 3 2 10 2 10 9", "polygon whose coordinates are no parts of the image's width and height (0 to 1)"),
        ("0 1.1 1.1 1.5 1.1 1.5 1.5", "outside of the image, or empty"),
        ("7 0.1 0.1 0.5 0.1 0.5 0.5", "class 7, which has no name"),
        ("cat 0.1 0.1 0.5 0.1 0.5 0.5", "line that does not start with the number of a class"),
        ("99999999999 0.1 0.1 0.5 0.1 0.5 0.5", "class 999999999, which has no name"),
    ],
)
def test_a_damaged_line_is_named_and_left_out(root, damaged, why):
    path = root / "labels/train/b.txt"
    path.write_text(f"{damaged}\n{path.read_text()}")
    sample, skipped = opened(root, "train").examine(1)
    assert skipped == [Skipped("images/train/b.png: line 1", why)]
    assert [i.id for i in sample.instances] == ["line 2"]


def test_a_polygon_in_the_first_pixel_is_not_taken_for_a_mistake(root):
    (root / "labels/train/b.txt").write_text(line(0, *box(0, 0, 1, 1)))
    assert opened(root, "train")[1].instances[0].box == (0, 0, 1, 1)


def test_a_label_file_that_is_no_text_stops_its_image_only(root):
    (root / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00")
    dataset = opened(root, "train", scan=True)
    assert dataset.names == ["images/train/a.png"]
    assert "b.txt cannot be read" in dataset.skipped[0].why


def test_boxes_alone_are_refused_with_the_reason(root):
    for path in (root / "labels").rglob("*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"hold boxes \(class, x, y, .* and no polygons, .*a\.txt for instance"):
        opened(root, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat", r"data\.yaml is not YAML that can be read"),
        ("names: 5\ntrain: images/train\n", "must be a list, or numbers with a name each"),
        ("names: {a: b}\ntrain: images/train\n", "must be a list, or numbers with a name each"),
        ("names: [[cat]]\ntrain: images/train\n", "must be a list, or numbers with a name each"),
        ("- names\n- train\n", "must be of the form 'train: images/train'"),
        ("train: /data/elsewhere\nnames: [cat]\n", r"names train \(/data/elsewhere\), but no such folder"),
        ("names: " + "[" * 3000, r"data\.yaml is not YAML that can be read"),
        ("!!python/object/apply:os.system ['true names train']", r"data\.yaml is not YAML that can be read"),
    ],
)
def test_a_wrong_yaml_says_what_is_wrong(root, text, message):
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root, "train")


def test_names_that_would_grow_without_end_are_refused(root):
    lines = ["n0: &n0 [x, x]", *(f"n{i + 1}: &n{i + 1} [*n{i}, *n{i}]" for i in range(60))]
    (root / "data.yaml").write_text("\n".join([*lines, "train: images/train", "names: *n60"]))
    with pytest.raises(DataError, match="must be a list, or numbers"):
        opened(root, "train")
    (root / "data.yaml").write_text("\n".join([*lines, "train: *n60", "names: [cat]"]))
    with pytest.raises(DataError, match="names train, but no such folder"):
        opened(root, "train")


def test_nothing_outside_of_the_folder_is_opened(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    save(picture(), other / "images/secret.png")
    (root / "data.yaml").write_text(f"train: {other}/images\nval: ../../../../..{other}/images\nnames: [cat]\n")
    assert all(Path(root, name).resolve().is_relative_to(root) for name in opened(root).names)


def test_only_the_chosen_classes_are_kept(root):
    sample = opened(root, "train", classes=["cat"])[0]
    assert [i.id for i in sample.instances] == ["line 2"]
