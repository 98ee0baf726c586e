import numpy as np
import pytest
from PIL import Image

from samparser.data import DataError, DataSettings, Skipped, detect_layout, open_dataset
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
