import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samparser.data import DataError, DataSettings, Skipped, open_dataset
from samparser.data.readers.brush import brush_rle
from tests.data.files import full_mask, picture, rectangle, save

STAR = [[10.0, 8.75], [64.7, 22.9], [87.8, 91.25], [35.6, 54.2]]


def region(kind="polygonlabels", label="cat", size=(24, 32), id="r1", turned=0, **value):
    value = value or {"points": STAR, "closed": True}
    named = {kind: [label] if isinstance(label, str) else label} if label is not None else {}
    return {
        "id": id,
        "type": kind,
        "to_name": "img",
        "from_name": "label",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": turned,
        "value": value | named,
    }


def task(*regions, image="/data/upload/1/0a1b2c3d-a.png", number=1, **more):
    annotation = {"id": 10 * number, "result": list(regions), "was_cancelled": False, "ground_truth": False}
    return {"id": number, "annotations": [annotation], "data": {"img": image}, "predictions": []} | more


def write(path, *tasks):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tasks))
    return path


def opened(root, split="all", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


@pytest.fixture
def root(tmp_path):
    save(picture(), tmp_path / "images/a.png")
    return tmp_path


def only(root):
    """The one object of the one image."""
    sample = opened(root)[0]
    (instance,) = sample.instances
    return full_mask(instance, *sample.size)


def test_polygons_are_percents_of_the_image(root):
    write(
        root / "project-1.json",
        task(region(), region(label="dog", id="r2", points=[[0, 0], [50, 0], [50, 50], [0, 50]])),
    )
    dataset = opened(root)
    assert (dataset.layout, dataset.classes, dataset.names) == ("labelstudio", {1: "cat", 2: "dog"}, ["images/a.png"])
    cat, dog = dataset[0].instances
    flat = [value for x, y in STAR for value in (x * 32 / 100, y * 24 / 100)]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([flat], 24, 32))).astype(bool)
    assert (cat.id, cat.class_id, dog.class_id) == ("region r1", 1, 2)
    assert np.array_equal(full_mask(cat, 24, 32), expected)
    assert np.array_equal(full_mask(dog, 24, 32), rectangle(0, 0, 16, 12))


def test_a_brush_is_the_pixels_that_are_painted(root):
    mask = np.random.default_rng(0).random((24, 32)) < 0.5
    write(root / "a.json", task(region("brushlabels", format="rle", rle=brush_rle(mask))))
    assert np.array_equal(only(root), mask)


@pytest.mark.parametrize(
    ("degrees", "box"), [(0, (200, 100, 500, 200)), (90, (100, 100, 200, 400)), (None, (200, 100, 500, 200))]
)
def test_a_rectangle_turns_about_its_top_left_corner(tmp_path, degrees, box):
    # The example of label-studio issue 2293: 1000 x 500 px, where turning percents and not pixels goes wrong.
    save(picture(500, 1000), tmp_path / "a.png")
    shape = {"x": 20.0, "y": 20.0, "width": 30.0, "height": 20.0, "rotation": degrees}
    write(tmp_path / "a.json", task(region("rectanglelabels", size=(500, 1000), **shape)))
    assert np.array_equal(only(tmp_path), rectangle(*box, 500, 1000))


def test_an_ellipse_has_radii_in_percent(root):
    shape = {"x": 50.0, "y": 50.0, "radiusX": 25.0, "radiusY": 12.5, "rotation": 90}
    write(root / "a.json", task(region("ellipselabels", **shape)))
    y, x = np.mgrid[:24, :32] + 0.5
    assert np.array_equal(only(root), ((x - 16) / 3) ** 2 + ((y - 12) / 8) ** 2 <= 1)


def test_labels_may_stand_in_a_result_of_their_own(root):
    shape = {"x": 0, "y": 0, "width": 50, "height": 50}
    write(root / "a.json", task(region("rectangle", None, **shape), region("labels", "dog", **shape)))
    dataset = opened(root)
    assert dataset.classes == {1: "dog"}
    assert [(i.id, i.box) for i in dataset[0].instances] == [("region r1", (0, 0, 16, 12))]


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("images/a.png", "/data/upload/3/0a1b2c3d-a.png"),
        ("upload/0a1b2c3d-a.png", "/data/upload/0a1b2c3d-a.png"),
        ("day 1/a b.png", "/data/local-files/?d=me/day%201/a%20b.png"),
        ("day/a.png", "s3://bucket/day/a.png"),
        ("images/a.png", "https://host.org/some/a.png?token=x.y"),
        ("a.png", "a.png"),
        ("images/a.png", "\\\\share\\a.png"),
    ],
)
def test_addresses_are_files_below_the_folder(tmp_path, file, image):
    save(picture(), tmp_path / file)
    write(tmp_path / "a.json", task(region(), image=image))
    assert opened(tmp_path).names == [file]


def test_the_name_of_an_upload_stands_in_for_a_missing_address(root):
    write(root / "a.json", task(region(), image="$undefined$", file_upload="0a1b2c3d-a.png"))
    assert opened(root).names == ["images/a.png"]


def test_nothing_outside_of_the_folder_is_opened(root):
    save(picture(), root / "secret.png")
    for image in ("/data/local-files/?d=../secret.png", "file:///../secret.png", str(root / "secret.png")):
        write(root / "set/a.json", task(region(), image=image))
        with pytest.raises(DataError, match=r"None of the 1 tasks of .*a\.json has its image below .*set"):
            opened(root / "set")


def test_of_several_annotations_the_ground_truth_or_else_the_latest_counts(root):
    other = region(points=[[0, 0], [50, 0], [50, 50], [0, 50]])
    old = {"id": 1, "result": [region()], "updated_at": "2024-01-01T00:00:00Z"}
    new = {"id": 2, "result": [other], "updated_at": "2024-06-01T00:00:00Z"}
    cancelled = {"id": 3, "result": [region()], "updated_at": "2025-01-01T00:00:00Z", "was_cancelled": True}
    write(root / "a.json", task(annotations=[new, old, cancelled]))
    dataset = opened(root)
    assert dataset[0].instances[0].box == (0, 0, 16, 12)
    assert dataset.skipped == [Skipped("a.json: task 1: annotation 1", "another annotation of the same image")]
    write(root / "a.json", task(annotations=[new, old | {"ground_truth": True}]))
    assert opened(root)[0].instances[0].box != (0, 0, 16, 12)


def test_files_named_after_splits_are_the_splits(tmp_path):
    for split, label in (("train", "dog"), ("val", "cat")):
        save(picture(), tmp_path / f"images/{split}.png")
        write(tmp_path / f"{split}.json", task(region(label=label), image=f"{split}.png"))
    assert opened(tmp_path, "val").names == ["images/val.png"]
    assert opened(tmp_path, "val").classes == opened(tmp_path, "train").classes == {1: "cat", 2: "dog"}
    assert opened(tmp_path / "val.json").names == ["images/val.png"]


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (region(points=[[1, 1], [float("nan"), 2], [3, 3]]), "polygon with a number that is not finite"),
        (region(points=[[1, 1], [2, "x"], [3, 3]]), "polygon with something that is not a number"),
        (region(points=[[1, 1], [2], [3, 3]]), "polygon whose points are not a list of x, y pairs"),
        (region(points=[[1, 1], [2, 1e9], [3, 3]]), "polygon far outside of the image"),
        (region(points=[[101, 1], [120, 1], [120, 9]]), "outside of the image, or empty"),
        (region("brushlabels", rle=[1, 2, 3]), "brush mask that is cut off"),
        (region("rectanglelabels", x=1, y=1, width=None, height=5), "rectangle with something that is not a number"),
        (region("keypointlabels", x=1, y=1, width=0.5), "keypointlabels, which is no mask"),
        (region("choices", label=None, choices=["good"]), "choices, which is no mask"),
        (region("polygon", label=None), "region without a label"),
        (region(turned=90), "drawn on a picture that was turned in Label Studio"),
        (region() | {"item_index": 1}, "region of another image of its task"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_region_is_named_and_left_out(root, damaged, why):
    write(root / "a.json", task(damaged, region(label="dog", id="r2")))
    sample, skipped = opened(root).examine(0)
    assert skipped == [Skipped("images/a.png: region r1", why)]
    assert [i.id for i in sample.instances] == ["region r2"]


def test_a_second_label_of_a_region_is_said(root):
    write(root / "a.json", task(region(label=["cat", "dog"])))
    sample, skipped = opened(root).examine(0)
    assert [i.class_id for i in sample.instances] == [1]
    assert skipped == [Skipped("images/a.png: region r1", "second label of a region; the first one counts")]


def test_tasks_without_an_image_or_regions_are_counted(root):
    write(
        root / "a.json",
        task(region()),
        task(region(), image="gone.png", number=2),
        task(region(), number=3) | {"data": {"text": "hello"}},
        task(image="images/a.png", number=4),
    )
    dataset = opened(root)
    assert dataset.names == ["images/a.png"]
    assert sorted(dataset.skipped) == [
        Skipped("a.json: task 3", "task without one image"),
        Skipped("gone.png", "image file missing"),
        Skipped("images/a.png", "no instance"),
    ]


def test_an_image_of_another_size_is_refused(root):
    write(root / "a.json", task(region(size=(32, 24))))
    with pytest.raises(DataError, match=r"a\.png has 32 x 24 px, but its task says 24 x 32"):
        opened(root)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1, "annotations": [', r"a\.json is not JSON that can be read"),
        ('[1, "annotations"]', r"a\.json is no list of tasks"),
        ('[{"annotations": ' + "[" * 50_000, r"a\.json is not JSON that can be read: it is nested too deeply"),
        ('[{"id": 1, "annotations": []}]', r"None of the 0 tasks"),
    ],
)
def test_a_file_that_is_damaged_says_so(root, text, message):
    (root / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_the_short_form_is_named_with_what_to_do(root):
    (root / "a.json").write_text('[{"image": "a.png", "label": [{"x": 1, "polygonlabels": ["cat"]}]}]')
    (root / "images/a.png").rename(root / "a.png")
    with pytest.raises(DataError, match=r"looks like Label Studio's JSON-MIN: export it as JSON\."):
        opened(root)
