import json

import pytest

from samparser.data import DataError, DataSettings, detect_layout, open_dataset
from tests.data.files import picture, polygon, rectangle, save, write_coco


def opened(root, split="train", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


@pytest.fixture
def pool(tmp_path):
    """NWPU VHR-10's layout: twenty images, ids from 0, no division."""
    for number in range(20):
        save(picture(seed=number), tmp_path / f"positive image set/{number + 1:03d}.jpg")
    write_coco(
        tmp_path / "annotations.json",
        [(n, f"{n + 1:03d}.jpg") for n in range(20)],
        [{"image_id": n, "segmentation": polygon(1, 1, 5 + n / 2, 9)} for n in range(20)],
        {1: "airplane"},
    )
    return tmp_path


def test_a_pool_is_divided_into_disjoint_parts_that_depend_on_the_seed_alone(pool):
    train, val = opened(pool), opened(pool, "val")
    assert train.layout == "nwpu"
    assert (len(train), len(val)) == (14, 6)
    assert sorted(train.names + val.names) == opened(pool, "all").names
    assert opened(pool, "val").names == val.names
    assert opened(pool, "test").names == val.names
    assert opened(pool, "val", split_seed=1).names != val.names
    assert opened(pool, "val", limit=3).names != val.names[:3] or len(opened(pool, "val", limit=3)) == 3


def test_the_parts_are_as_large_as_asked(pool):
    sizes = [len(opened(pool, split, val_ratio=0.1, test_ratio=0.25)) for split in ("train", "val", "test")]
    assert sizes == [13, 2, 5]
    names = [
        name for split in ("train", "val", "test") for name in opened(pool, split, val_ratio=0.1, test_ratio=0.25).names
    ]
    assert len(set(names)) == 20


def test_the_first_image_has_id_zero(pool):
    assert opened(pool, "all")[0].instances[0].box == (1, 1, 5, 9)


def test_a_limit_takes_that_many_images_in_their_order(pool):
    whole, some = opened(pool), opened(pool, limit=5)
    assert len(some) == 5
    assert some.names == [name for name in whole.names if name in set(some.names)]
    assert opened(pool, limit=5).names == some.names


def test_val_is_held_out_of_train_where_a_set_has_train_and_test(coco_root):
    annotations = coco_root / "annotations"
    (annotations / "instances_val2017.json").rename(annotations / "instances_test2017.json")
    (coco_root / "val2017").rename(coco_root / "test2017")
    with pytest.raises(DataError, match=r"no val split; it has train, test. Set val_ratio to hold out"):
        opened(coco_root, "val")
    train, val = opened(coco_root, "train", val_ratio=0.34), opened(coco_root, "val", val_ratio=0.34)
    assert (len(train), len(val)) == (2, 1)
    assert sorted(train.names + val.names) == opened(coco_root).names


def test_a_split_file_in_json_names_the_images(pool):
    (pool / "split.json").write_text(json.dumps({"train": ["003", "001.jpg"], "val": ["positive image set/002.jpg"]}))
    assert opened(pool, split_file="split.json").names == [f"positive image set/{n}.jpg" for n in ("003", "001")]
    assert opened(pool, "val", split_file="split.json").names == ["positive image set/002.jpg"]
    with pytest.raises(DataError, match="has no test split; it has train, val"):
        opened(pool, "test", split_file="split.json")


def test_a_name_listed_twice_is_one_image(pool):
    (pool / "split.json").write_text(json.dumps({"train": ["003", "003.jpg", "001", "003"]}))
    assert opened(pool, split_file="split.json").names == [f"positive image set/{n}.jpg" for n in ("003", "001")]


def test_split_files_as_text_name_one_image_a_line(pool):
    (pool / "train.txt").write_text("001\n\n005.jpg\n")
    (pool / "val.txt").write_text("007\n")
    assert opened(pool, split_file="{split}.txt").names == [f"positive image set/{n}.jpg" for n in ("001", "005")]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": ["001"], "val": ["002", "001"]}, "lists 001 under train and under val"),
        (
            {"train": ["001", "999", "998"]},
            "2 of the 3 names .* for train name no image or several, '999' for instance",
        ),
        ({"train": ["001"], "val": ["001.jpg"]}, "lists 001.jpg under train and under val"),
        (["001"], "must be of the form"),
        ("[" * 50_000, r"split\.json cannot be read: it is nested too deeply"),
        ('{"train": [' + "9" * 5000 + "]}", r"split\.json cannot be read: Exceeds the limit \(4300 digits\)"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_split_file_says_what_is_wrong(pool, lists, message):
    (pool / "split.json").write_text(lists if isinstance(lists, str) else json.dumps(lists))
    with pytest.raises(DataError, match=message):
        opened(pool, split_file="split.json")


def test_a_split_file_that_is_missing_or_names_no_split_says_so(pool):
    with pytest.raises(DataError, match=r"gone\.json cannot be read"):
        opened(pool, split_file="gone.json")
    with pytest.raises(DataError, match=r"split_file needs \{split\} in its name"):
        opened(pool, split_file="train.txt")


def test_an_empty_split_lists_why_images_were_left_out(pool):
    content = json.loads((pool / "annotations.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (pool / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"No image with an instance is left in the train split.*crowd region: 20"):
        opened(pool)


def test_layouts_are_told_from_their_files(tmp_path, coco_root, pool):
    assert detect_layout(pool) == "nwpu"
    (tmp_path / "positive image set").rename(tmp_path / "images")
    assert detect_layout(coco_root) == "coco"
    assert detect_layout(coco_root / "annotations/instances_val2017.json") == "coco"
    masks = tmp_path / "own"
    save(picture(), masks / "images/a.png")
    save(rectangle(1, 1, 5, 5), masks / "annotations/a.png")
    (masks / "notes.json").write_text("{}")
    assert detect_layout(masks) == "folders"
    (masks / "notes.json").write_text((coco_root / "annotations/instances_val2017.json").read_text())
    assert detect_layout(masks) == "coco"
    empty = tmp_path / "empty"
    (empty / "stuff").mkdir(parents=True)
    with pytest.raises(DataError, match=r"(?s)layout of .*empty is not known\. It holds stuff/.*voc: VOC2012"):
        detect_layout(empty)
    with pytest.raises(DataError, match="gone does not exist"):
        detect_layout(tmp_path / "gone")


def test_an_unknown_split_or_layout_is_answered_with_those_that_there_are(pool):
    with pytest.raises(ValueError, match="split must be one of train, val, test, all, got 'validation'"):
        opened(pool, "validation")
    with pytest.raises(ValueError, match=r"layout must be auto or one of nwpu, voc, .*, got 'yolov8'"):
        opened(pool, layout="yolov8")
    with pytest.raises(DataError, match=r"data folder .*gone does not exist"):
        opened(pool / "gone")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_ratio": 1.0}, "val_ratio=1.0"),
        ({"val_ratio": 0.6, "test_ratio": 0.5}, "leave some to train on"),
        ({"min_area": 0}, "at least 1, got 0"),
        ({"limit": 0}, "at least 1, got 0"),
        ({"instances": "objects"}, "components, class or ids, got 'objects'"),
        ({"window_width": 0.0}, "window_width must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(data="x", **settings)


def test_readers_of_one_set_must_agree_on_the_classes(coco_root):
    path = coco_root / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    with pytest.raises(DataError, match="Class 18 is 'dog' in one annotation file and 'wolf' in another"):
        opened(coco_root, "all")


def test_an_image_too_few_to_divide_is_told(tmp_path):
    save(picture(), tmp_path / "images/a.png")
    save(rectangle(1, 1, 5, 5), tmp_path / "masks/a.png")
    with pytest.raises(
        DataError,
        match=r"ratio of the images that there are comes to none.*split_file\.$",
    ):
        opened(tmp_path, "val")


def test_settings_are_read_from_a_command_line():
    from transformers import HfArgumentParser

    line = "--data x --classes cat dog --min_area 7 --scan true --instances ids --class_names 1=a 2=b --crowds false"
    (settings,) = HfArgumentParser((DataSettings,)).parse_args_into_dataclasses(line.split())
    assert settings == DataSettings(
        "x", classes=["cat", "dog"], min_area=7, scan=True, instances="ids", class_names=["1=a", "2=b"], crowds=False
    )


def test_a_data_set_is_a_torch_data_set_of_samples(coco_root):
    dataset = opened(coco_root)
    assert dataset[-1].name == dataset.names[2]
    with pytest.raises(IndexError, match="Sample 3 of 3"):
        dataset[3]
    assert "images=3, classes=2" in repr(dataset)
    assert rectangle(0, 0, 6, 6).sum() == dataset[0].instances[0].area


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("sa_223750.json", '{"image": {}, "annotations": [{"segmentation": {}}]}', "SA-1B: one JSON file per image"),
        ("via.json", '{"a.jpg123": {"regions": []}}', "VGG Image Annotator's JSON"),
        ("ds/ann/a.jpg.json", '{"objects": [{"points": {"exterior": []}}]}', "Supervisely's JSON"),
        ("train/_classes.csv", "Pixel Value, Class\n", "Roboflow's masks"),
        ("stage1/0a1b/masks/1.png", "", ""),
        ("0a1b/masks/1.png", "", r"a folder of masks for each image \(DSB2018\)"),
        ("benign/benign (1)_mask.png", "", "images and masks in one folder: name it with both settings"),
        ("case1.nrrd", "", "volumes: convert them to NIfTI"),
        ("gt/a_mask.npy", "", "masks as NumPy files"),
    ],
)
def test_layouts_of_others_are_named_with_what_to_do(tmp_path, name, content, hint):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"is not known\. It holds [^.]+(\.\w+)?\..*{hint}.*Layouts:"):
        detect_layout(tmp_path)
