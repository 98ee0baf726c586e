from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from samparser.data import DataError, DataSettings, DataWarning, Skipped, detect_layout, open_dataset
from tests.data.files import picture, save


def palette_png(values, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(values).convert("P")
    stored.putpalette([(n * 37) % 256 for n in range(768)])
    stored.save(path)


@pytest.fixture
def voc_root(tmp_path):
    folder = tmp_path / "VOCdevkit/VOC2012"
    objects, classes = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    objects[2:8, 3:9], objects[10:20, 3:9], objects[0:2, 20:25] = 1, 2, 3
    classes[2:8, 3:9], classes[10:20, 3:9], classes[10, 3:9] = 15, 8, 12
    objects[8, 3:9] = classes[8, 3:9] = 255
    for stem in ("2007_000032", "2007_000039"):
        save(picture(), folder / f"JPEGImages/{stem}.jpg")
        palette_png(objects, folder / f"SegmentationObject/{stem}.png")
        palette_png(classes, folder / f"SegmentationClass/{stem}.png")
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split, text in (("train", "2007_000032\n"), ("val", "2007_000039\n2007_000099\n"), ("trainval", "")):
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    return tmp_path


def test_objects_take_their_most_frequent_class_and_the_band_is_void(voc_root):
    dataset = open_dataset(DataSettings(data=str(voc_root)), "train")
    assert (dataset.layout, len(dataset.classes), dataset.classes[15]) == ("voc", 20, "person")
    assert dataset.names == ["VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg"]
    sample, skipped = dataset.examine(0)
    assert [(i.id, i.class_id, i.box) for i in sample.instances] == [("1", 15, (3, 2, 9, 8)), ("2", 8, (3, 10, 9, 20))]
    assert sample.void.sum() == 6
    assert skipped == [Skipped(f"{dataset.names[0]}: object 3", "object without a class")]


def test_listed_images_without_files_are_counted(voc_root):
    dataset = open_dataset(DataSettings(data=str(voc_root)), "val")
    assert len(dataset) == 1
    assert dataset.skipped == [
        Skipped("2007_000099", "no file in JPEGImages and SegmentationClass and SegmentationObject")
    ]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_set_is_found_from_any_of_its_folders(voc_root, below):
    assert detect_layout(voc_root / below) == "voc"
    assert len(open_dataset(DataSettings(data=str(voc_root / below)), "all")) == 2


def test_colour_copies_of_the_labels_are_refused(voc_root):
    path = voc_root / "VOCdevkit/VOC2012/SegmentationObject/2007_000032.png"
    Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"2007_000032\.png is a colour picture"):
        open_dataset(DataSettings(data=str(voc_root)), "train")[0]


def test_labels_of_another_size_are_refused(voc_root):
    palette_png(np.ones((5, 6), np.uint8), voc_root / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png")
    with pytest.raises(DataError, match="has 6 x 5 px, but its image has 32 x 24"):
        open_dataset(DataSettings(data=str(voc_root)), "train")[0]


def test_classes_beyond_the_twenty_are_refused(voc_root):
    palette_png(np.full((24, 32), 33, np.uint8), voc_root / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png")
    with pytest.raises(DataError, match="has the value 33; VOC's classes are 1 to 20"):
        open_dataset(DataSettings(data=str(voc_root)), "train")[0]


COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 255: (224, 224, 192)}
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:128,0,0::\nspall:0,128,0::\n"


def masks():
    """Objects 1 and 3, a void band, and their classes: crack and spall."""
    objects, classes = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    objects[2:8, 3:9], objects[10:20, 3:9], objects[21, :] = 1, 3, 255
    classes[2:8, 3:9], classes[10:20, 3:9], classes[21, :] = 1, 2, 255
    return objects, classes


def store(values, path, kind):
    """A mask as indices of a palette with CVAT's colours or with others, or as the colours themselves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "other palette":
        return palette_png(values, path)
    colours = np.zeros((256, 3), np.uint8)
    for value, colour in COLOURS.items():
        colours[value] = colour
    if kind == "colours":
        return save(colours[values], path)
    stored = Image.fromarray(values).convert("P")
    stored.putpalette(colours.ravel().tolist())
    return stored.save(path)


def cvat(root, kind="palette", lists=("default",), suffix="png"):
    objects, classes = masks()
    for number in range(4):
        stem = f"day {number % 2}/a{number}"
        save(picture(seed=number), root / f"JPEGImages/{stem}.{suffix}")
        store(objects, root / f"SegmentationObject/{stem}.png", kind)
        store(classes, root / f"SegmentationClass/{stem}.png", kind)
        listed = root / f"ImageSets/Segmentation/{lists[number % len(lists)]}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text((listed.read_text() if listed.is_file() else "") + stem + "\n")
    (root / "labelmap.txt").write_text(LABELMAP)
    return root


@pytest.mark.parametrize("kind", ["palette", "other palette", "colours"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_masks_of_cvat_have_the_classes_of_their_labelmap(tmp_path, kind, suffix):
    cvat(tmp_path, kind, suffix=suffix)
    assert detect_layout(tmp_path) == "voc"
    dataset = open_dataset(DataSettings(data=str(tmp_path)), "all")
    assert dataset.classes == {1: "crack", 2: "spall"}
    assert len(dataset) == 4
    sample = dataset[0]
    assert sorted((i.class_id, i.box) for i in sample.instances) == [(1, (3, 2, 9, 8)), (2, (3, 10, 9, 20))]
    assert sample.void.sum() == 32


def test_one_list_is_a_pool_and_lists_of_splits_are_splits(tmp_path):
    cvat(tmp_path / "pool")
    sizes = [len(open_dataset(DataSettings(data=str(tmp_path / "pool")), split)) for split in ("train", "val")]
    assert sizes == [3, 1]
    cvat(tmp_path / "own", lists=("train", "val"))
    names = [open_dataset(DataSettings(data=str(tmp_path / "own")), split).names for split in ("train", "val")]
    assert names == [[f"JPEGImages/day {n}/a{m}.png" for m in (n, n + 2)] for n in (0, 1)]


def test_colours_that_the_labelmap_does_not_name_are_named(tmp_path):
    cvat(tmp_path, "colours")
    (tmp_path / "labelmap.txt").write_text(LABELMAP.replace("spall:0,128,0::", ""))
    with pytest.raises(DataError, match=r"a0\.png has colours that labelmap\.txt does not name: #008000"):
        open_dataset(DataSettings(data=str(tmp_path)), "all")[0]
    (tmp_path / "labelmap.txt").write_text("crack:red::\n")
    with pytest.raises(DataError, match=r"has the line 'crack:red::'; expected label:red,green,blue"):
        open_dataset(DataSettings(data=str(tmp_path)), "all")


@pytest.mark.parametrize("ending", ["", "PNG"])
@pytest.mark.parametrize("objects_too", [True, False])
def test_the_folders_of_labelme_are_read_without_lists(tmp_path, ending, objects_too):
    objects, classes = masks()
    for stem in ("a", "b"):
        save(picture(), tmp_path / f"JPEGImages/{stem}.jpg")
        store(classes, tmp_path / f"SegmentationClass{ending}/{stem}.png", "palette")
        if objects_too:
            store(objects, tmp_path / f"SegmentationObject{ending}/{stem}.png", "palette")
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncrack\nspall\n")
    told = nullcontext() if objects_too else pytest.warns(DataWarning, match="no SegmentationObject")
    with told:
        dataset = open_dataset(DataSettings(data=str(tmp_path)), "all")
        named = open_dataset(DataSettings(data=str(tmp_path), class_names=["1=line", "2=hole"]), "all")
    assert (dataset.layout, dataset.classes, len(dataset)) == ("voc", {1: "crack", 2: "spall"}, 2)
    assert sorted((i.class_id, i.box) for i in dataset[0].instances) == [(1, (3, 2, 9, 8)), (2, (3, 10, 9, 20))]
    assert named.classes == {1: "line", 2: "hole"}


def regions(values):
    """The connected regions (8 neighbours) of each value but 0 and 255, pixel by pixel: (value, pixels)."""
    left = {(y, x) for y, x in np.argwhere((values != 0) & (values != 255)).tolist()}
    found = set()
    while left:
        start = left.pop()
        region, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            near = {place for place in near if values[place] == values[start]}
            left -= near
            region |= near
            edge += near
        found.add((int(values[start]), frozenset(region)))
    return found


def test_class_masks_alone_give_the_connected_regions_of_each_class_and_say_so(tmp_path):
    random = np.random.default_rng(0)
    for stem in "ab":
        values = random.choice(np.array([0, 0, 0, 1, 2, 255], np.uint8), (24, 32))
        save(picture(), tmp_path / f"JPEGImages/{stem}.jpg")
        store(values, tmp_path / f"SegmentationClass/{stem}.png", "palette")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    with pytest.warns(DataWarning, match="no SegmentationObject: each connected region of a class is taken for an obj"):
        dataset = open_dataset(DataSettings(data=str(tmp_path)), "all")
    for stem, sample in zip("ab", dataset, strict=True):
        values = np.asarray(Image.open(tmp_path / f"SegmentationClass/{stem}.png"))
        found = [
            (i.class_id, frozenset((y + i.box[1], x + i.box[0]) for y, x in np.argwhere(i.mask).tolist()))
            for i in sample.instances
        ]
        assert len(found) == len(set(found))
        assert set(found) == regions(values)
        assert np.array_equal(sample.void, values == 255)
