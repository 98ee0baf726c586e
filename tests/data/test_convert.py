import base64
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools.coco import COCO

from samparser.data import DataError, DataSettings, detect_layout, open_dataset
from samparser.data.convert import WRITERS, convert_dataset
from tests.data.files import full_mask, picture, rectangle, runs, save, write_coco

HEIGHT, WIDTH = 11, 13
# Formats that hold each object with its class, whatever lies over it, and the shapes that they write.
WHOLE = [
    ("coco", "masks"), ("coco", "polygons"), ("yolo", "auto"), ("labelme", "masks"), ("labelme", "polygons"),
    ("cvat", "masks"), ("cvat", "polygons"), ("labelstudio", "masks"), ("labelstudio", "polygons"),
]  # fmt: skip
NAMES = {3: "cat", 7: "big 'dog': \"é\" #1", 12: "<b> & co"}


def converted(root, out, to, **options):
    read = {name: options.pop(name) for name in list(options) if name not in ("files", "shapes")}
    return convert_dataset(DataSettings(data=str(root), **read), out, to, progress=False, **options)


def opened(root, split="all", **options):
    return open_dataset(DataSettings(data=str(root), **options), split)


def objects(dataset):
    """Each image's pixels, and its objects as (name of the class, mask), as sets."""
    return {
        sample.image.tobytes(): sorted(
            (dataset.classes[i.class_id], full_mask(i, *sample.size).tobytes()) for i in sample.instances
        )
        for sample in dataset
    }


def write_set(root, masks_by_split):
    """A COCO set of one image for each list of (class id, mask)."""
    number = 0
    for split, images in masks_by_split.items():
        entries, annotations = [], []
        for masks in images:
            number += 1
            save(picture(HEIGHT, WIDTH, seed=number), root / f"{split}/{number}.png")
            entries.append((number, f"{number}.png"))
            annotations += [
                {"image_id": number, "category_id": c, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(mask)}}
                for c, mask in masks
            ]
        write_coco(root / f"annotations/instances_{split}.json", entries, annotations, NAMES, (HEIGHT, WIDTH))
    return root


def box(*sides):
    return rectangle(*sides, HEIGHT, WIDTH)


@pytest.fixture
def root(tmp_path):
    """Three images with holes, parts, overlaps and objects that touch, to train and to validate with."""
    hole = box(1, 1, 8, 8) & ~box(3, 3, 5, 5)
    parts = box(0, 0, 2, 2) | box(5, 9, 9, 11)
    train = [[(3, hole), (7, box(6, 6, 12, 10))], [(12, parts), (3, box(9, 0, 11, 4)), (3, box(11, 0, 13, 4))]]
    return write_set(tmp_path / "set", {"train": train, "val": [[(7, box(0, 0, WIDTH, HEIGHT))]]})


MASKS = st.lists(
    st.tuples(st.sampled_from(sorted(NAMES)), arrays.arrays(bool, (HEIGHT, WIDTH)).filter(lambda mask: mask.any())),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(("to", "shapes"), WHOLE)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(images=[[(3, rectangle(0, 0, 1, 1, HEIGHT, WIDTH))]])
@given(images=st.lists(MASKS, min_size=1, max_size=2))
def test_whatever_is_drawn_is_the_same_when_it_is_read_back(tmp_path_factory, to, shapes, images):
    root = write_set(tmp_path_factory.mktemp("law"), {"train": images})
    before = opened(root, "train")
    result = converted(root, root / "out", to, shapes=shapes)
    after = opened(root / "out", "train")
    assert objects(after) == objects(before)
    assert result.instances["train"] == sum(map(len, images))
    assert not result.lost


@pytest.mark.parametrize(("to", "shapes"), WHOLE)
def test_splits_names_and_classes_are_kept(root, tmp_path, to, shapes):
    result = converted(root, tmp_path / "out", to, shapes=shapes)
    assert (dict(result.images), dict(result.instances)) == ({"train": 2, "val": 1}, {"train": 5, "val": 1})
    assert detect_layout(tmp_path / "out") == to
    for split in ("train", "val"):
        before, after = opened(root, split), opened(tmp_path / "out", split)
        assert objects(after) == objects(before)
        assert sorted(after.classes.values()) == sorted(NAMES.values())
        assert [os.path.basename(name) for name in after.names] == [os.path.basename(name) for name in before.names]
    assert "Not carried over: scores" in str(result)


@pytest.mark.parametrize("between", ["coco", "yolo", "labelme", "cvat", "labelstudio"])
@pytest.mark.parametrize("to", ["coco", "yolo", "labelme", "cvat", "labelstudio"])
def test_each_format_can_be_written_from_each_other(root, tmp_path, between, to):
    converted(root, tmp_path / "between", between)
    converted(tmp_path / "between", tmp_path / "out", to)
    assert objects(opened(tmp_path / "out")) == objects(opened(root))


def test_class_masks_hold_what_is_on_top_and_say_what_is_lost(root, tmp_path):
    result = converted(root, tmp_path / "out", "voc")
    assert detect_layout(tmp_path / "out") == "voc"
    dataset = opened(tmp_path / "out", "train")
    assert [name for name in NAMES.values() if name not in dataset.classes.values()] == [NAMES[7]]
    assert result.lost == {
        "objects, in part: pixels under other objects": 1,
        "names of classes, which labelmap.txt has no room for as they are": 1,
    }
    first, second = dataset
    on_top, below = box(6, 6, 12, 10), box(1, 1, 8, 8) & ~box(3, 3, 5, 5)
    masks = [full_mask(i, HEIGHT, WIDTH) for i in first.instances]
    assert np.array_equal(masks[0], below & ~on_top)  # the smaller one is on top
    assert np.array_equal(masks[1], on_top)
    assert objects(opened(root, "train"))[second.image.tobytes()] == sorted(
        (dataset.classes[i.class_id], full_mask(i, HEIGHT, WIDTH).tobytes()) for i in second.instances
    )


def test_more_objects_than_a_palette_has_room_for_are_written_in_sixteen_bits(tmp_path):
    pixels = [(3, box(x, y, x + 1, y + 1)) for y in range(0, HEIGHT) for x in range(WIDTH)] * 2
    root = write_set(tmp_path / "set", {"train": [[*pixels, (7, box(0, 0, 2, 2))]]})
    few = converted(root, tmp_path / "few", "voc")
    assert few.lost["objects, wholly under others"] == HEIGHT * WIDTH + 1
    big = tmp_path / "big"
    save(picture(20, 20), big / "train/a.png")
    annotations = [{"image_id": 1, "category_id": 3, "segmentation": [[x, y, x + 1, y, x + 1, y + 1, x, y + 1]]}
                   for y in range(20) for x in range(20)]  # fmt: skip
    write_coco(big / "annotations/instances_train.json", [(1, "a.png")], annotations, NAMES, (20, 20))
    result = converted(big, tmp_path / "out", "voc")
    assert any("more than 254 objects" in note for note in result.notes)
    assert objects(opened(tmp_path / "out")) == objects(opened(big))


def test_masks_of_ids_keep_objects_apart_and_say_that_classes_are_lost(root, tmp_path):
    result = converted(root, tmp_path / "out", "folders")
    assert result.lost == {"names of classes": 3, "objects, in part: pixels under other objects": 1}
    dataset = opened(tmp_path / "out", "train", instances="ids")
    assert [len(sample.instances) for sample in dataset] == [2, 3]


def test_whu_joins_what_touches_and_says_so(root, tmp_path):
    result = converted(root, tmp_path / "out", "whu")
    # The two that overlap, the one in two parts, and the two that touch.
    assert result.lost["objects that touch others or have several parts: regions are the objects there"] == 5
    dataset = opened(tmp_path / "out", "train")
    assert (dataset.layout, dataset.classes) == ("whu", {1: "building"})
    union = [sample.masks.any(axis=0).tobytes() for sample in opened(root, "train")]
    assert [sample.masks.any(axis=0).tobytes() for sample in dataset] == union


def test_void_is_kept_where_the_format_knows_it_and_said_elsewhere(tmp_path):
    labels = np.zeros((24, 32), np.uint8)
    labels[2:9, 2:9], labels[9, 2:9] = 1, 255
    save(picture(), tmp_path / "set/images/a.png")
    save(labels, tmp_path / "set/masks/a.png")
    for to in ("labelme", "voc"):
        assert not converted(tmp_path / "set", tmp_path / to, to, void_value=255).lost
        assert np.array_equal(opened(tmp_path / to)[0].void, labels == 255)
    for to in ("coco", "yolo", "cvat", "labelstudio", "whu", "folders"):
        lost = converted(tmp_path / "set", tmp_path / to, to, void_value=255).lost
        assert lost["images with pixels of which nothing is known (void)"] == 1


def test_what_the_reader_leaves_out_is_said(root, tmp_path):
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"].append({"id": 99, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "segmentation": []})
    content["images"].append({"id": 50, "file_name": "gone.png", "height": HEIGHT, "width": WIDTH})
    path.write_text(json.dumps(content))
    (root / "train/2.png").write_bytes(b"cut")
    result = converted(root, tmp_path / "out", "coco", crowds=False)
    assert result.images == {"train": 1, "val": 1}
    text = str(result)
    for part in ("crowd region: 1 (", "no segmentation, only a box: 1 (", "image file missing: 1 (gone.png)"):
        assert f"left out: {part}" in text
    assert "cannot be read, left out: " in text
    assert "2.png is not an image that Pillow can open" in text


def test_a_set_without_a_division_stays_one_unless_it_is_asked_for(tmp_path):
    for number in range(5):
        save(picture(seed=number), tmp_path / f"set/images/{number}.png")
        save(255 * rectangle(1, 1, 5 + number, 6).astype(np.uint8), tmp_path / f"set/masks/{number}.png")
    for to in WRITERS:
        result = converted(tmp_path / "set", tmp_path / to, to)
        assert (dict(result.images), len(opened(tmp_path / to))) == ({"all": 5}, 5)
        options = {"instances": "ids"} if to == "folders" else {}
        masks = {sample.image.tobytes(): sample.masks.tobytes() for sample in opened(tmp_path / to, **options)}
        assert masks == {sample.image.tobytes(): sample.masks.tobytes() for sample in opened(tmp_path / "set")}
        divided = converted(tmp_path / "set", tmp_path / f"{to}-2", to, val_ratio=0.2)
        assert dict(divided.images) == {"train": 4, "val": 1}
        assert len(opened(tmp_path / f"{to}-2", "val")) == 1


def test_images_of_one_name_get_names_of_their_own(tmp_path):
    places = ("a/1.png", "b/1.png", "b/1.jpg", "c/x y#1.PNG")
    for number, place in enumerate(places):
        save(picture(seed=number), tmp_path / f"set/images/{place}")
    entries = [(number, place) for number, place in enumerate(places)]
    annotations = [{"image_id": n, "segmentation": [[n, 0, 9, 0, 9, 9]]} for n in range(4)]
    write_coco(tmp_path / "set/annotations.json", entries, annotations)
    for to in ("coco", "yolo", "voc"):
        converted(tmp_path / "set", tmp_path / to, to)
        names = sorted(os.path.basename(name) for name in opened(tmp_path / to).names)
        assert names == ["1-2.png", "1-3.jpg", "1.png", "x y_1.PNG"]
        assert objects(opened(tmp_path / to)).keys() == objects(opened(tmp_path / "set")).keys()


def test_images_are_copied_or_linked_as_they_are(root, tmp_path):
    converted(root, tmp_path / "copied", "coco")
    converted(root, tmp_path / "linked", "coco", files="link")
    copy, link = (tmp_path / place / "images/train/1.png" for place in ("copied", "linked"))
    assert copy.read_bytes() == link.read_bytes() == (root / "train/1.png").read_bytes()
    assert (copy.is_symlink(), link.is_symlink()) == (False, True)
    assert link.resolve() == (root / "train/1.png").resolve()


def test_what_is_no_image_file_is_written_as_one(root, tmp_path):
    converted(root, tmp_path / "labelme", "labelme")
    for path in (tmp_path / "labelme").rglob("*.json"):
        content = json.loads(path.read_text())
        image = path.with_suffix(".png")
        content["imageData"] = base64.b64encode(image.read_bytes()).decode()
        path.write_text(json.dumps(content))
        image.unlink()
    converted(tmp_path / "labelme", tmp_path / "out", "yolo")
    assert objects(opened(tmp_path / "out")) == objects(opened(root))


def test_nothing_of_the_users_is_overwritten_and_nothing_is_left_after_an_error(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder; nothing was written over it"):
        converted(root, tmp_path / "out", "coco")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    for path in root.glob("*/*.png"):
        path.write_bytes(b"cut")
    with pytest.raises(DataError, match=r"None of the images of .* can be read"):
        converted(root, tmp_path / "new", "coco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


@pytest.mark.parametrize(
    ("to", "shapes", "message"),
    [
        ("lableme", "auto", r"no format 'lableme' to write; choose from coco, yolo, .*Did you mean 'labelme'\?"),
        ("yolo", "masks", "The format yolo has no masks; leave shapes out, which writes polygons"),
        ("voc", "polygons", "The format voc has no polygons; leave shapes out, which writes masks"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_read(tmp_path, to, shapes, message):
    with pytest.raises(ValueError, match=message):
        converted(tmp_path / "gone", tmp_path / "out", to, shapes=shapes)
    assert not (tmp_path / "out").exists()


def test_a_palette_has_the_colours_of_voc(root, tmp_path):
    converted(root, tmp_path / "out", "voc")
    colours = np.asarray(Image.open(tmp_path / "out/SegmentationClass/3.png").getpalette()).reshape(-1, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {index: tuple(colours[index].tolist()) for index in known} == known


@pytest.mark.parametrize("shapes", ["masks", "polygons"])
def test_coco_files_are_read_by_pycocotools_as_they_were_meant(root, tmp_path, shapes, capsys):
    converted(root, tmp_path / "out", "coco", shapes=shapes)
    written = COCO(tmp_path / "out/annotations/instances_train.json")
    entries = {image["file_name"]: image["id"] for image in written.loadImgs(written.getImgIds())}
    for sample in opened(root, "train"):
        annotations = written.loadAnns(written.getAnnIds(imgIds=entries[os.path.basename(sample.name)]))
        assert [annotation["category_id"] for annotation in annotations] == [i.class_id for i in sample.instances]
        for annotation, instance in zip(annotations, sample.instances, strict=True):
            assert np.array_equal(written.annToMask(annotation) > 0, full_mask(instance, *sample.size))
            x0, y0, x1, y1 = instance.box
            assert (annotation["bbox"], annotation["area"]) == ([x0, y0, x1 - x0, y1 - y0], instance.area)
