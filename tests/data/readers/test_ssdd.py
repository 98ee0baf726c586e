import pytest

from samparser.data import DataError, DataSettings, detect_layout, open_dataset
from tests.data.files import picture, polygon, save, write_coco

XML = """<annotation><filename>{stem}.jpg</filename><size><width>{width}</width><height>24</height></size>
<object><name>ship</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>7</xmax><ymax>9</ymax></bndbox>
<segm><point>2,3</point><point>7,3</point><point>7,9</point><point>2,9</point></segm></object>
<object><name>ship</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def xml(path, width=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(stem=path.stem, width=width))


@pytest.mark.parametrize("release", ["PSeg_SSDD", "Official-SSDD-OPEN/BBox_RBox_PSeg_SSDD"])
def test_the_official_coco_style_is_read(tmp_path, release):
    style = tmp_path / release / "coco_style"
    for split, name in (("train", "000002.jpg"), ("test", "000001.jpg")):
        save(picture(), style / "images" / split / name)
        for part in (split, f"{split}_inshore"):
            annotation = {"image_id": 1, "category_id": 0, "segmentation": polygon(2, 3, 7, 9)}
            write_coco(style / f"annotations/{part}.json", [(1, name)], [annotation], {0: "ship"})
    assert detect_layout(tmp_path) == "ssdd"
    dataset = open_dataset(DataSettings(data=str(tmp_path)), "test")
    assert dataset.names == ["images/test/000001.jpg"]
    assert [(i.box, i.class_id) for i in dataset[0].instances] == [((2, 3, 7, 9), 0)]


@pytest.mark.parametrize("layout", ["folders", "lists"])
def test_the_official_voc_style_is_read(tmp_path, layout):
    style = tmp_path / "PSeg_SSDD/voc_style"
    for split, stem in (("train", "000002"), ("test", "000001")):
        ending = f"_{split}" if layout == "folders" else ""
        save(picture(), style / f"JPEGImages{ending}" / f"{stem}.jpg")
        xml(style / f"Annotations{ending}" / f"{stem}.xml")
        if layout == "lists":
            (style / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
            (style / f"ImageSets/Main/{split}.txt").write_text(stem + "\n")
    dataset = open_dataset(DataSettings(data=str(tmp_path)), "test")
    assert (dataset.layout, dataset.classes) == ("ssdd", {1: "ship"})
    sample, skipped = dataset.examine(0)
    assert dataset.names[0].endswith("/000001.jpg")
    assert [(i.id, i.box) for i in sample.instances] == [("1", (2, 3, 7, 9))]
    assert [skip.why for skip in skipped] == ["no segmentation, only a box"]
    assert len(open_dataset(DataSettings(data=str(tmp_path)), "all")) == 2


def test_coco_json_as_others_pass_it_on_is_read(tmp_path):
    for split in ("train", "val"):
        save(picture(), tmp_path / f"imgs/{split}.jpg")
        annotation = {"image_id": 0, "segmentation": polygon(2, 3, 7, 9)}
        write_coco(tmp_path / f"annotations/SSDD_instances_{split}.json", [(0, f"{split}.jpg")], [annotation])
    assert detect_layout(tmp_path) == "ssdd"
    assert open_dataset(DataSettings(data=str(tmp_path)), "val").names == ["imgs/val.jpg"]


def test_an_xml_file_of_another_size_or_broken_is_refused(tmp_path):
    style = tmp_path / "voc_style"
    save(picture(), style / "JPEGImages_train/1.jpg")
    xml(style / "Annotations_train/1.xml", width=64)
    dataset = open_dataset(DataSettings(data=str(tmp_path)), "train")
    with pytest.raises(DataError, match=r"1\.jpg has 32 x 24 px, but 1\.xml says 64 x 24"):
        dataset[0]
    (style / "Annotations_train/1.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"1\.xml is not XML"):
        dataset[0]
