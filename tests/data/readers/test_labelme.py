import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from samparser.data import DataError, DataSettings, Skipped, detect_layout, open_dataset
from tests.data.files import full_mask, picture, rectangle, save

STAR = [[3.2, 2.1], [20.7, 5.5], [28.1, 21.9], [11.4, 13.0]]
BOX = [[1, 1], [5, 5]]


def png(array, **options):
    stored = io.BytesIO()
    Image.fromarray(array).save(stored, "PNG", **options)
    return base64.b64encode(stored.getvalue()).decode()


def shape(label="cat", points=STAR, kind="polygon", **more):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def write(path: Path, *shapes, image="", **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image or f"{path.stem}.png",
        "imageData": None,
        "imageHeight": 24,
        "imageWidth": 32,
    }
    path.write_text(json.dumps(content | more))
    return path


def opened(root, split="all", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def drawn(*polygons):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), 24, 32))).astype(bool)


def pixels(inside):
    """The pixels whose middle is inside, one by one."""
    return np.array([[bool(inside(x + 0.5, y + 0.5)) for x in range(32)] for y in range(24)])


@pytest.fixture
def root(tmp_path):
    save(picture(), tmp_path / "a.png")
    return tmp_path


def only(root):
    """The one object of the one image."""
    (instance,) = opened(root)[0].instances
    return full_mask(instance, 24, 32)


def test_polygons_are_drawn_as_by_pycocotools_and_labels_are_the_classes(root):
    write(root / "a.json", shape("dog"), shape("cat", [[1, 1], [9, 1], [9, 8], [1, 8]]))
    dataset = opened(root)
    assert (dataset.layout, dataset.classes, dataset.names) == ("labelme", {1: "cat", 2: "dog"}, ["a.png"])
    dog, cat = dataset[0].instances
    assert (dog.class_id, cat.class_id, dog.id) == (2, 1, "shape 1")
    assert np.array_equal(full_mask(dog, 24, 32), drawn([v for point in STAR for v in point]))
    assert np.array_equal(full_mask(cat, 24, 32), rectangle(1, 1, 9, 8))


@pytest.mark.parametrize("points", [[[9, 2], [3, 12]], [[3, 2], [9, 2], [9, 12], [3, 12]]])
def test_rectangles_may_start_at_any_corner(root, points):
    write(root / "a.json", shape(points=points, kind="rectangle"))
    assert np.array_equal(only(root), rectangle(3, 2, 9, 12))


def test_a_circle_is_the_pixels_closer_to_its_middle_than_the_second_point(root):
    write(root / "a.json", shape(points=[[12.5, 10.0], [15.5, 14.0]], kind="circle"))
    assert np.array_equal(only(root), pixels(lambda x, y: (x - 12.5) ** 2 + (y - 10) ** 2 <= 25))


@pytest.mark.parametrize(("left", "top"), [(4, 3), (-2, 20)])
def test_a_mask_is_a_png_of_its_box(root, left, top):
    crop = np.random.default_rng(0).random((6, 9)) < 0.5
    mask = png(crop) if left > 0 else png(crop.astype(np.uint8) * 255)
    write(root / "a.json", shape(points=[[left, top], [left + 8, top + 5]], kind="mask", mask=mask))
    expected = np.zeros((24, 32), bool)
    for y, x in np.argwhere(crop):
        if 0 <= y + top < 24 and 0 <= x + left < 32:
            expected[y + top, x + left] = True
    assert np.array_equal(only(root), expected)


def test_shapes_of_one_group_and_label_are_one_object(root):
    parts = [shape("cat", [[x, 1], [x + 4, 6]], "rectangle", group_id=5) for x in (1, 10)]
    write(root / "a.json", *parts, shape("dog", [[20, 1], [24, 6]], "rectangle", group_id=5))
    cat, dog = opened(root)[0].instances
    assert np.array_equal(full_mask(cat, 24, 32), rectangle(1, 1, 5, 6) | rectangle(10, 1, 14, 6))
    assert (cat.id, dog.id, dog.box) == ("group 5", "group 5", (20, 1, 24, 6))


def test_the_ignored_label_is_void_and_the_background_no_object(root):
    boxes = [[[1, 1], [5, 5]], [[10, 10], [14, 15]], [[20, 2], [22, 9]]]
    labels = ("__ignore__", "_background_", "cat")
    write(root / "a.json", *(shape(label, box, "rectangle") for label, box in zip(labels, boxes, strict=True)))
    dataset = opened(root)
    assert dataset.classes == {1: "cat"}
    assert [i.box for i in dataset[0].instances] == [(20, 2, 22, 9)]
    assert np.array_equal(dataset[0].void, rectangle(1, 1, 5, 5))


def test_a_picture_may_be_embedded(tmp_path):
    image = picture()
    write(tmp_path / "a.json", shape(), imageData=png(image))
    dataset = opened(tmp_path)
    assert dataset.names == ["a.json"]
    assert np.array_equal(dataset[0].image, image)


@pytest.mark.parametrize(
    ("json_file", "image", "said"),
    [
        ("labels/a.json", "images/a.png", "..\\images\\a.png"),
        ("labels/a.json", "images/a.png", "a.png"),
        ("a.json", "pics/a.png", "pics/a.png"),
        ("a.json", "a.png", "/home/me/work/a.png"),
        ("a.json", "a.PNG", "C:\\me\\a.png"),
        ("a.json", "a.png", None),
    ],
)
def test_images_are_found_by_the_end_of_their_names(tmp_path, json_file, image, said):
    save(picture(), tmp_path / image)
    write(tmp_path / json_file, shape(), imagePath=said)
    assert opened(tmp_path).names == [image]


def test_nothing_outside_of_the_folder_is_opened(tmp_path):
    save(picture(), tmp_path / "secret.png")
    write(tmp_path / "set/a.json", shape(), image="../secret.png")
    with pytest.raises(DataError, match=r"None of the 1 labelme files of .*set has its image"):
        opened(tmp_path / "set")


def test_folders_name_the_splits_and_all_of_them_have_the_same_classes(tmp_path):
    for split, label in (("train", "dog"), ("valid", "cat")):
        save(picture(), tmp_path / split / f"{label}.png")
        write(tmp_path / split / f"{label}.json", shape(label))
    assert opened(tmp_path, "train").names == ["train/dog.png"]
    assert opened(tmp_path, "val").names == ["valid/cat.png"]
    assert opened(tmp_path, "all").classes == opened(tmp_path, "train").classes == {1: "cat", 2: "dog"}
    assert opened(tmp_path / "train/dog.json").names == ["dog.png"]


def test_files_that_are_damaged_or_of_others_are_named_and_left_out(root):
    write(root / "a.json", shape())
    (root / "cut.json").write_text((root / "a.json").read_text()[:60])
    (root / "deep.json").write_text('{"shapes": ' + "[" * 50_000)
    (root / "other.json").write_text("{}")
    (root / "strange.json").write_text('{"shapes": [1]}')
    (root / "bytes.json").write_bytes(b'{"shapes": \xff')
    write(root / "gone.json", shape())
    write(root / "twice.json", shape(), image="a.png")
    write(root / "empty.json", image="a.png")
    dataset = opened(root)
    assert dataset.names == ["a.png"]
    (unread,) = (skip.why for skip in dataset.skipped if skip.where == "bytes.json")
    assert "bytes.json cannot be read" in unread
    assert sorted(skip for skip in dataset.skipped if skip.where != "bytes.json") == [
        Skipped("a.png", "described more than once; the first one counts"),
        Skipped("a.png", "no instance"),
        Skipped("cut.json", "not JSON that can be read"),
        Skipped("deep.json", "not JSON that can be read"),
        Skipped("gone.png", "image file missing"),
        Skipped("other.json", "JSON without shapes"),
        Skipped("strange.json", "JSON with a shape that has no fields"),
    ]


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (shape(points=[[1, 1], [2, float("nan")], [3, 3]]), "shape with a number that is not finite"),
        (shape(points=[[1, 1], [2, "x"], [3, 3]]), "shape with something that is not a number"),
        (shape(points=[[1, 1], [2], [3, 3]]), "shape whose points are not a list of x, y pairs"),
        (shape(points=[[1, 1], [2, 2]]), "shape with 2 points"),
        (shape(points=[[1, 1], [2, 1e9], [3, 3]]), "shape far outside of the image"),
        (shape(points=[[40, 1], [50, 1], [50, 9]]), "outside of the image, or empty"),
        (shape(points=[[1, 1]], kind="point"), "point, which has no area"),
        (shape(kind="linestrip"), "linestrip, which has no area"),
        (shape(kind="cuboid"), "shape of the unknown type cuboid"),
        (shape(points=[[1, 1], [1, 1]], kind="circle"), "ellipse without a size"),
        (shape(points=BOX, kind="mask", mask="AAAA"), "mask that is no PNG in base64"),
        (shape(points=BOX, kind="mask", mask="ä"), "mask that is no PNG in base64"),
        (shape(points=BOX, kind="mask"), "mask that is no PNG in base64"),
        (
            shape(points=BOX, kind="mask", mask=png(np.ones((9, 9), bool))),
            "mask of another size than its box",
        ),
        (shape(points=BOX, kind="mask", mask=png(np.ones((9, 90), bool))), "mask larger than its image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_shape_is_named_and_left_out(root, damaged, why):
    write(root / "a.json", damaged, shape("dog"))
    sample, skipped = opened(root).examine(0)
    assert skipped == [Skipped("a.png: shape 1", why)]
    assert [i.id for i in sample.instances] == ["shape 2"]


def test_an_image_of_another_size_is_refused(root):
    write(root / "a.json", shape(), imageHeight=32, imageWidth=24)
    with pytest.raises(DataError, match=r"a\.png has 32 x 24 px, but a\.json says 24 x 32"):
        opened(root)[0]


def test_an_embedded_picture_that_is_none_stops_its_image_only(root):
    write(root / "a.json", shape())
    write(root / "b.json", shape(), imageData="AAAA")
    write(root / "c.json", shape(), imageData="?")
    dataset = opened(root, scan=True)
    assert dataset.names == ["a.png"]
    assert "the imageData of b.json is not an image that Pillow can open" in dataset.skipped[0].why
    assert "c.json is not base64" in dataset.skipped[1].why


def test_images_without_the_chosen_classes_are_left_out(root):
    save(picture(), root / "b.png")
    write(root / "a.json", shape("dog"))
    write(root / "b.json", shape("cat"))
    dataset = opened(root, classes=["dog"])
    assert dataset.names == ["a.png"]
    assert dataset.skipped == [Skipped("b.png", "no instance of the chosen classes")]


def test_an_embedded_image_before_the_shapes_is_recognised(tmp_path):
    text = json.dumps({"imageData": png(picture(200, 300)), "imagePath": "a.png", "shapes": [shape()]}, sort_keys=True)
    (tmp_path / "a.json").write_text(text)
    assert detect_layout(tmp_path) == "labelme"


def test_a_file_that_is_called_like_one_of_cocos_is_labelmes_all_the_same(tmp_path):
    for name in ("train", "annotations"):
        save(picture(), tmp_path / name / f"{name}.png")
        path = write(tmp_path / name / f"{name}.json", shape())
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors on Windows store text
        assert detect_layout(tmp_path / name) == detect_layout(path) == "labelme"
        assert len(opened(path)[0].instances) == 1
