"""Every reader on real files, where SAMPARSER_DATA names them, and on the images that the project ships."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from samparser.data import DataSettings, convert_dataset, detect_layout, open_dataset
from samparser.data_check import check_dataset
from tests.data.files import full_mask

NUCLEI = Path(__file__).parents[2] / "examples/assets/nuclei"


def opened(root, split, **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def pycocotools_masks(path, names):
    """Image file -> bool masks in the order of the file, drawn by pycocotools alone, for the images of these names."""
    content = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"], image["file_name"]) for image in content["images"]}
    found = {}
    for annotation in content["annotations"]:
        height, width, name = sizes[annotation["image_id"]]
        if name not in names:
            continue
        encoded = coco_mask.frPyObjects(annotation["segmentation"], height, width)
        if isinstance(encoded, list):
            encoded = coco_mask.merge(encoded)
        found.setdefault(name, []).append(coco_mask.decode(encoded).astype(bool))
    return found


@pytest.mark.parametrize(("split", "images", "instances"), [("train", 60, 3045), ("test", 40, 1774)])
def test_the_nuclei_that_are_shipped_are_complete(split, images, instances):
    report = check_dataset(DataSettings(data=str(NUCLEI)), split, progress=False)
    assert report.usable
    assert (report.images, report.instances) == ({split: images}, {split: instances})
    assert report.skipped == []
    assert report.classes == {"nucleus": instances}


def test_the_nuclei_that_are_shipped_are_small_and_name_their_source():
    assert sum(path.stat().st_size for path in NUCLEI.rglob("*")) < 9_000_000
    text = (NUCLEI / "README.md").read_text()
    for word in ("BBBC038", "CC0", "Broad", "2018 Data Science Bowl"):
        assert word in text


@pytest.mark.parametrize(
    ("folder", "split", "file"),
    [
        ("coco128", "val", "annotations/instances_val2017.json"),
        ("nuclei", "test", "annotations/instances_test.json"),
        ("nwpu-vhr10", "val", "annotations.json"),
        ("ssdd", "val", "annotations/SSDD_instances_val.json"),
    ],
)
def test_masks_of_real_files_are_those_of_pycocotools(real_data, folder, split, file):
    dataset = opened(real_data / folder, split, limit=10)
    expected = pycocotools_masks(real_data / folder / file, {Path(name).name for name in dataset.names})
    for sample in dataset:
        masks = [mask for mask in expected[Path(sample.name).name] if mask.any()]
        assert len(masks) == len(sample.instances)
        assert masks
        for mask, instance in zip(masks, sample.instances, strict=True):
            assert np.array_equal(full_mask(instance, *sample.size), mask)


def test_the_real_nwpu_is_divided_seventy_to_thirty(real_data):
    train, val = opened(real_data / "nwpu-vhr10", "train"), opened(real_data / "nwpu-vhr10", "val")
    assert (train.layout, len(train), len(val), len(train.classes)) == ("nwpu", 364, 156, 10)
    assert not set(train.names) & set(val.names)


def test_the_voc_layout_is_read_with_void_and_classes(real_data):
    dataset = opened(real_data / "voc-layout", "val")
    assert (dataset.layout, len(dataset)) == ("voc", 25)
    folder = real_data / "voc-layout/VOCdevkit/VOC2012"
    for sample in list(dataset)[:8]:
        objects = np.asarray(Image.open(folder / f"SegmentationObject/{Path(sample.name).stem}.png"))
        classes = np.asarray(Image.open(folder / f"SegmentationClass/{Path(sample.name).stem}.png"))
        assert [i.id for i in sample.instances] == [str(v) for v in np.unique(objects) if v not in (0, 255)]
        assert np.array_equal(sample.void, objects == 255)
        for instance in sample.instances:
            mask = full_mask(instance, *sample.size)
            assert np.array_equal(mask, objects == int(instance.id))
            assert (classes[mask] == instance.class_id).mean() > 0.5


@pytest.mark.parametrize(("folder", "split", "images"), [("whu", "val", 2), ("buildings", "val", 15)])
def test_whu_tiles_are_read_as_buildings(real_data, folder, split, images):
    dataset = opened(real_data / folder, split)
    assert (dataset.layout, len(dataset)) == ("whu", images)
    for sample in dataset:
        label = np.asarray(Image.open(real_data / folder / sample.name.replace("/image/", "/label/"))) > 0
        union = sample.masks.any(axis=0)
        assert np.array_equal(union, label)
        assert sum(i.area for i in sample.instances) == label.sum()


@pytest.mark.parametrize(
    ("folder", "layout"),
    [
        ("nuclei", "coco"),
        ("coco128", "coco"),
        ("nwpu-vhr10", "nwpu"),
        ("ssdd", "ssdd"),
        ("whu", "whu"),
        ("buildings", "whu"),
        ("voc-layout", "voc"),
    ],
)
def test_the_layout_of_real_sets_is_found(real_data, folder, layout):
    assert detect_layout(real_data / folder) == layout


def test_the_same_tile_in_train_and_test_is_found(real_data):
    report = check_dataset(DataSettings(data=str(real_data / "whu")), progress=False)
    assert any("more than one split" in text for text in report.warnings)


@pytest.mark.parametrize("to", ["coco", "yolo", "labelme", "cvat", "labelstudio", "voc"])
@pytest.mark.parametrize(("folder", "split"), [("nuclei", "test"), ("buildings", "val")])
def test_real_masks_come_back_from_every_format_as_they_were(real_data, tmp_path, folder, split, to):
    settings = DataSettings(data=str(real_data / folder), limit=4)
    result = convert_dataset(settings, tmp_path / to, to, files="link", progress=False)
    before, after = open_dataset(settings, split), opened(tmp_path / to, split)
    assert (len(after), result.images[split], dict(result.lost)) == (len(before), len(before), {})

    def objects(dataset):
        return {
            sample.image.tobytes(): sorted(
                (dataset.classes[i.class_id], i.box, i.mask.tobytes()) for i in sample.instances
            )
            for sample in dataset
        }

    assert objects(after) == objects(before)
