"""Masks written to files come back as they were; a failure leaves nothing half-written."""

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samparser.prediction import SegmentedImage, write_coco, write_label_png
from samparser.prediction.mask_files import write_image


def squares(count, size=(64, 64)):
    masks = np.zeros((count, *size), dtype=bool)
    for number, mask in enumerate(masks):
        mask.reshape(-1)[number] = True
    return masks


@pytest.mark.parametrize(("count", "kind"), [(255, np.uint8), (256, np.uint16), (0, np.uint8)])
def test_labels_count_from_one_in_as_many_bits_as_they_need(tmp_path, count, kind):
    masks = squares(count)
    write_label_png(masks, tmp_path / "labels.png")
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert labels.dtype == kind
    assert labels.max() == count
    assert all(np.array_equal(labels == number + 1, masks[number]) for number in range(count))


def test_where_masks_overlap_the_smaller_one_is_on_top(tmp_path):
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 1, 1] = True
    masks[1] = True
    write_label_png(masks, tmp_path / "labels.png")
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert labels[1, 1] == 1
    assert (labels == 2).sum() == 15


def test_labels_are_refused_in_a_format_that_loses_them(tmp_path):
    with pytest.raises(ValueError, match=r"got .*labels\.jpg"):
        write_label_png(squares(1), tmp_path / "labels.jpg")
    with pytest.raises(ValueError, match=r"holds 65535 labels; got 65536 masks"):
        write_label_png(np.zeros((65536, 1, 1), dtype=bool), tmp_path / "labels.png")


def test_the_coco_file_is_read_by_pycocotools_with_masks_boxes_and_areas(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 10, 12)) > 0.5, np.zeros((1, 5, 6), dtype=bool)
    images = [SegmentedImage("a.png", first, [0.5, 0.25, 1.0], [1, 2, 1]), SegmentedImage("b.png", second)]
    write_coco(tmp_path / "masks.json", iter(images), {1: "car", 2: "ship"})
    coco = COCO(tmp_path / "masks.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["a.png", "b.png"]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    for annotation, mask in zip(annotations, first, strict=True):
        assert np.array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()
    assert [annotation["score"] for annotation in annotations] == [0.5, 0.25, 1.0]
    assert [annotation["category_id"] for annotation in annotations] == [1, 2, 1]
    (empty,) = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert (empty["area"], empty["bbox"], empty["id"]) == (0, [0, 0, 0, 0], 4)
    assert "score" not in empty


def test_an_image_of_unwritable_format_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="unknown file extension"):
        write_image(np.zeros((2, 2), np.uint8), tmp_path / "x.nothing")
    assert list(tmp_path.iterdir()) == []
