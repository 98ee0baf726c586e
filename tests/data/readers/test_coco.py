import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from samparser.data import DataError, DataSettings, DataWarning, Skipped, open_dataset
from samparser.data.readers import coco_layout
from samparser.data.readers.coco_index import index_coco
from tests.data.files import picture, polygon, rectangle, runs, save, write_coco


def opened(root, split="train", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def one_image(tmp_path, annotations, categories=None, size=(24, 32)):
    save(picture(*size), tmp_path / "images/a.png")
    write_coco(tmp_path / "annotations.json", [(0, "a.png")], annotations, categories, size)
    return tmp_path


def test_images_come_with_their_own_annotations_in_the_order_of_the_file(coco_root):
    dataset = opened(coco_root)
    assert dataset.layout == "coco"
    assert dataset.classes == {1: "cat", 18: "dog"}
    assert dataset.names == [f"train2017/{n:012d}.png" for n in range(3)]
    assert [[(i.id, i.class_id, i.box) for i in sample.instances] for sample in dataset] == [
        [("2", 1, (0, 0, 6, 6))],
        [("4", 18, (5, 5, 9, 20))],
        [("1", 18, (2, 3, 10, 9)), ("3", 1, (20, 4, 31, 24))],
    ]
    assert np.array_equal(dataset[2].image, picture(seed=2))
    assert np.array_equal(dataset[2].masks[1], rectangle(20, 4, 31, 24))
    assert dataset.skipped == []


def test_no_image_is_opened_before_it_is_asked_for(coco_root):
    for path in coco_root.rglob("*.png"):
        path.write_bytes(b"")
    dataset = opened(coco_root)
    assert len(dataset) == 3
    with pytest.raises(DataError, match=r"000000000001\.png is not an image"):
        dataset[1]


def test_each_split_is_its_own_file_and_all_is_both(coco_root):
    assert opened(coco_root, "val").names == ["val2017/000000000003.png"]
    assert len(opened(coco_root, "all")) == 4
    with pytest.raises(DataError, match="has no test split; it has train, val"):
        opened(coco_root, "test")


def test_the_class_filter_leaves_out_images_without_the_class(coco_root):
    dataset = opened(coco_root, classes=["dog"])
    assert dataset.classes == {18: "dog"}
    assert [[i.id for i in sample.instances] for sample in dataset] == [["4"], ["1"]]
    assert dataset.skipped == [Skipped("000000000000.png", "no instance of the chosen classes")]


def test_an_unknown_class_is_answered_with_those_that_there_are(coco_root):
    with pytest.raises(DataError, match=r"no class 'dgo'\. Did you mean 'dog'\? Classes: cat, dog"):
        opened(coco_root, classes=["dgo"])


def test_small_instances_are_left_out_with_their_reason(coco_root):
    sample, skipped = opened(coco_root, min_area=40).examine(0)
    assert sample.instances == ()
    assert skipped == [Skipped("train2017/000000000000.png: 2", "smaller than 40 px")]


def test_crowd_regions_and_boxes_without_a_mask_are_counted(tmp_path):
    root = one_image(
        tmp_path,
        [
            {"image_id": 0, "iscrowd": 1, "segmentation": {"size": [24, 32], "counts": [768]}},
            {"image_id": 0, "segmentation": [], "bbox": [1, 1, 5, 5]},
            {"image_id": 0, "segmentation": polygon(1, 1, 6, 6)},
        ],
    )
    dataset = opened(root, "all")
    assert [i.id for i in dataset[0].instances] == ["3"]
    assert dataset.skipped == [
        Skipped("a.png: annotation number 0", "crowd region"),
        Skipped("a.png: annotation number 1", "no segmentation, only a box"),
    ]


def test_what_cannot_be_drawn_is_left_out_and_the_rest_is_kept(tmp_path):
    root = one_image(
        tmp_path,
        [
            {"image_id": 0, "segmentation": polygon(40, 2, 50, 9), "bbox": [40, 2, 10, 7]},
            {"image_id": 0, "segmentation": [[3, 3, 4, 4]]},
            {"image_id": 0, "segmentation": {"size": [24, 32], "counts": [768]}, "bbox": [0, 0, 5, 5]},
            {"image_id": 0, "segmentation": {"size": [48, 64], "counts": [3072]}},
            {"image_id": 0, "segmentation": polygon(-5, -5, 6, 6)},
        ],
    )
    sample, skipped = opened(root, "all").examine(0)
    assert [(i.id, i.box) for i in sample.instances] == [("5", (0, 0, 6, 6))]
    assert [skip.why for skip in skipped] == [
        "outside of the image",
        "polygon with fewer than three points",
        "empty mask",
        "run-length encoding of 64 x 48 px for an image of 32 x 24 px",
    ]


def test_missing_image_files_and_images_without_annotations_are_counted(coco_root):
    (coco_root / "train2017/000000000001.png").unlink()
    path = coco_root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 99, "file_name": "000000000099.png"})
    save(picture(), coco_root / "train2017/000000000099.png")
    path.write_text(json.dumps(content))
    dataset = opened(coco_root)
    assert len(dataset) == 2
    assert dataset.skipped == [
        Skipped("000000000001.png", "image file missing"),
        Skipped("000000000099.png", "no instance"),
    ]


def test_scanning_leaves_out_images_that_do_not_open(coco_root):
    (coco_root / "train2017/000000000001.png").write_bytes(b"broken")
    dataset = opened(coco_root, scan=True)
    assert dataset.names == ["train2017/000000000000.png", "train2017/000000000002.png"]
    assert [skip.where for skip in dataset.skipped] == ["train2017/000000000001.png"]
    assert "not an image" in dataset.skipped[0].why


def test_an_annotation_of_an_unlisted_class_is_explained(tmp_path):
    root = one_image(
        tmp_path,
        [{"image_id": 0, "category_id": n, "segmentation": polygon(1, 1, 5, 5)} for n in (0, 0, 1)],
        {1: "cat", 2: "dog"},
    )
    with pytest.raises(DataError, match=r"2 annotations .* have category_id 0, .*ids 1, 2\..* count from 0"):
        opened(root)


def test_an_annotation_of_an_unlisted_image_is_explained(tmp_path):
    root = one_image(tmp_path, [{"image_id": 5, "segmentation": polygon(1, 1, 5, 5)}])
    with pytest.raises(DataError, match=r"1 annotation of .* has image_id 5, but its images list has the ids 0"):
        opened(root)


def test_an_image_of_another_size_than_annotated_is_explained(tmp_path):
    root = one_image(tmp_path, [{"image_id": 0, "segmentation": polygon(1, 1, 5, 5)}])
    save(picture(48, 64), tmp_path / "images/a.png")
    with pytest.raises(DataError, match=r"a\.png has 64 x 48 px, but annotations\.json says 32 x 24.*resized"):
        opened(root, "all")[0]


def test_annotations_from_before_the_exif_rotation_are_explained(tmp_path):
    root = one_image(tmp_path, [{"image_id": 0, "segmentation": polygon(1, 1, 5, 5)}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(tmp_path / "images/a.png", exif=exif)
    with pytest.raises(DataError, match=r"has 24 x 32 px, but .* says 32 x 24.*before its EXIF rotation"):
        opened(root, "all")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a JSON file"),
        ("{", "is not a JSON file"),
        ('{"images": [], "annotations": [{"image_id": 1', "is not a JSON file"),
        ("plain text", "is not a JSON file"),
        ("[1, 2]", "not a COCO annotation file: it has no list images and no list annotations and no list categories"),
        ('{"shapes": [], "version": 5}', "found shapes, version"),
        ('{"images": [], "categories": []}', "no list annotations"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        (
            '{"images": [], "annotations": [{"bbox": []}], "categories": []}',
            "Annotation number 0 .*missing required field `image_id`",
        ),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "each image needs id and file_name"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "each category needs id and name"),
    ],
)
def test_a_file_that_is_not_coco_says_what_is_wrong_with_it(tmp_path, text, message):
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        opened(path, layout="coco")


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"annotation file .*gone\.json cannot be read: No such file"):
        opened(tmp_path, annotations="gone.json")


def test_images_that_are_nowhere_are_listed_with_the_places_looked_at(tmp_path):
    root = one_image(tmp_path, [{"image_id": 0, "segmentation": polygon(1, 1, 5, 5)}])
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match=r"(?s)None of the 1 images .*a\.png is the first.*Looked in.*images setting"):
        opened(root)


def test_only_boxes_are_refused(tmp_path):
    root = one_image(tmp_path, [{"image_id": 0, "segmentation": [], "bbox": [1, 1, 5, 5]}])
    with pytest.raises(DataError, match="has boxes but no segmentations"):
        opened(root)


def test_one_file_listed_twice_is_refused(tmp_path):
    save(picture(), tmp_path / "images/a.png")
    annotations = [{"image_id": n, "segmentation": polygon(1, 1, 5, 5)} for n in (0, 1)]
    write_coco(tmp_path / "annotations.json", [(0, "a.png"), (1, "a.png")], annotations)
    with pytest.raises(DataError, match=r"1 image files more than once, images/a\.png for instance"):
        opened(tmp_path)
    write_coco(tmp_path / "annotations.json", [(0, "a.png"), (0, "b.png")], annotations[:1])
    with pytest.raises(DataError, match="gives one image id to several images"):
        opened(tmp_path)


def test_names_in_any_script_and_a_byte_order_mark_are_read(tmp_path):
    name = "größe-図.png"
    save(picture(), tmp_path / "images" / name)
    path = write_coco(
        tmp_path / "annotations.json",
        [(0, name)],
        [{"image_id": 0, "note": "größe", "segmentation": polygon(1, 1, 5, 5)}] * 2,
        {1: "図"},
    )
    content = json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=1)
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    dataset = opened(tmp_path, "all")
    assert dataset.names == [f"images/{name}"]
    assert dataset.classes == {1: "図"}
    assert [i.area for i in dataset[0].instances] == [16, 16]


def test_ids_are_unique_within_an_image(tmp_path):
    root = one_image(tmp_path, [{"image_id": 0, "id": 4, "segmentation": polygon(n, n, 9, 9)} for n in range(3)])
    assert [i.id for i in opened(root, "all")[0].instances] == ["4", "4 (number 1)", "4 (number 2)"]


def test_the_places_where_tools_put_coco_files_are_found(tmp_path):
    annotation = [{"image_id": 0, "segmentation": polygon(1, 1, 5, 5)}]
    for number, (annotations, images) in enumerate(
        [
            ("annotations/instances_train.json", "train"),
            ("annotations/SSDD_instances_train.json", "imgs"),
            ("train.json", "images/train"),
            ("annotations/train.json", "images"),
            ("train/_annotations.coco.json", "train"),
            ("annotations/instances_train2014.json", "images/train2014"),
        ]
    ):
        root = tmp_path / str(number)
        save(picture(), root / images / "a.png")
        write_coco(root / annotations, [(0, "a.png")], annotation)
        assert opened(root).names == [f"{images}/a.png"], annotations


def test_two_files_for_one_split_are_refused_by_name(coco_root):
    other = coco_root / "annotations/instances_train2014.json"
    other.write_bytes((coco_root / "annotations/instances_train2017.json").read_bytes())
    with pytest.raises(
        DataError, match=r"two annotation files for train: .*2014\.json and .*2017\.json.*annotations setting"
    ):
        opened(coco_root)
    assert len(opened(coco_root, annotations="annotations/instances_{split}2017.json")) == 3


def test_own_names_are_given_as_patterns(tmp_path):
    for split in ("train", "val"):
        save(picture(), tmp_path / f"pictures/{split}_set/a.png")
        write_coco(
            tmp_path / f"my_{split}.json", [(0, "a.png")], [{"image_id": 0, "segmentation": polygon(1, 1, 5, 5)}]
        )
    dataset = opened(tmp_path, "val", annotations="my_{split}.json", images="pictures/{split}_set")
    assert dataset.names == ["pictures/val_set/a.png"]


def test_ids_may_start_at_zero_and_counts_may_be_runs(tmp_path):
    mask = rectangle(3, 4, 9, 10)
    root = one_image(
        tmp_path,
        [{"image_id": 0, "category_id": 0, "segmentation": {"size": [24, 32], "counts": runs(mask)}}],
        {0: "x"},
    )
    sample = opened(root, "all")[0]
    assert sample.instances[0].class_id == 0
    assert np.array_equal(sample.masks[0], mask)


def rewritten(root, image=None, annotation=None, name="annotations.json"):
    """Changes the entry of the first image and of the first annotation."""
    content = json.loads((root / name).read_text())
    content["images"][0] |= image or {}
    content["annotations"][0] |= annotation or {}
    (root / name).write_text(json.dumps(content))
    return root


ONE = [{"image_id": 0, "segmentation": polygon(3, 2, 8, 6), "bbox": [3, 2, 5, 4], "area": 20}]


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ({"id": 2**63}, {"image_id": 2**63}),
        ({"id": 2**70}, {"image_id": 2**70}),
        ({"id": "007"}, {"image_id": "7"}),
        ({"id": "7"}, {"image_id": 7.0}),
        ({"id": "im0"}, {"image_id": "im0"}),
        ({"id": float("inf")}, {"image_id": float("inf")}),
        ({"width": "32", "height": "24.0"}, {}),
        ({"width": 0, "height": 0}, {}),
        ({}, {"area": "", "bbox": [None] * 4}),
        ({}, {"area": [20], "bbox": "none", "id": None}),
        ({}, {"area": float("nan"), "iscrowd": "0"}),
        ({}, {"segmentation": [[[3, 2], [8, 2], [8, 6], [3, 6]]]}),
        ({}, {"segmentation": [[3, 2], [8, 2], [8, 6], [3, 6]]}),
        ({}, {"segmentation": [["3", 2, 8, 2, 8, 6, 3, "6"]]}),
    ],
    ids=str,
)
def test_what_exporters_write_otherwise_is_read(tmp_path, image, annotation):
    root = rewritten(one_image(tmp_path, ONE), image, annotation)
    (instance,) = opened(root, "all")[0].instances
    assert (instance.box, instance.area) == ((3, 2, 8, 6), 20)


def test_ids_that_are_alike_as_numbers_are_told_apart_as_they_are_written(tmp_path):
    for name in "ab":
        save(picture(), tmp_path / f"images/{name}.png")
    for ids in (("001", "01"), (1.2, 1.7), ("a", "b")):
        annotations = [{"image_id": i, "segmentation": polygon(1, 1, 5 + n, 5)} for n, i in enumerate(ids)]
        write_coco(tmp_path / "annotations.json", list(zip(ids, ("a.png", "b.png"), strict=True)), annotations)
        assert [sample.instances[0].area for sample in opened(tmp_path, "all")] == [16, 20]


def test_class_ids_that_are_no_numbers_are_counted(tmp_path):
    for ids in (["cat", "dog"], [2**70, 2**71]):
        annotations = [{"image_id": 0, "category_id": i, "segmentation": polygon(1, 1, 5, 5)} for i in reversed(ids)]
        dataset = opened(one_image(tmp_path, annotations, dict(zip(ids, ("cat", "dog"), strict=True))), "all")
        assert dataset.classes == {1: "cat", 2: "dog"}
        assert [i.class_id for i in dataset[0].instances] == [2, 1]


@pytest.mark.parametrize("size", [1, 600])
def test_normalised_polygons_are_refused_and_named(tmp_path, size):
    azure = [[0.23, 0.21, 0.63, 0.21, 0.63, 0.63, 0.23, 0.63]]
    root = one_image(tmp_path, [{"image_id": 0, "segmentation": azure}] * size)
    dataset = opened(root, "all")
    with pytest.raises(DataError, match=r"a\.png: annotation 1 .* between 0 and 1.*normalised.*pixels: multiply x by"):
        dataset[0]
    with pytest.raises(DataError, match="No image with an instance is left"):
        opened(root, "all", scan=True)


def test_one_normalised_polygon_among_others_is_left_out(tmp_path):
    tiny = [[0.2, 0.2, 0.6, 0.2, 0.6, 0.6]]
    sample, skipped = opened(one_image(tmp_path, [*ONE, {"image_id": 0, "segmentation": tiny}]), "all").examine(0)
    assert [i.id for i in sample.instances] == ["1"]
    assert [skip.why for skip in skipped] == ["polygon with all coordinates between 0 and 1"]


BRUSH = {"size": [24, 32], "counts": runs(rectangle(3, 2, 8, 6))}


def test_brush_masks_that_cvat_marks_as_crowds_are_kept(tmp_path):
    brush = {"image_id": 0, "iscrowd": 1, "segmentation": BRUSH}
    cvat = brush | {"attributes": {"occluded": False}}
    for annotations, kept in (([brush], 1), ([brush] * 3, 3), ([cvat, *ONE], 2), ([cvat, brush, *ONE], 2)):
        root = one_image(tmp_path, annotations)
        with pytest.warns(DataWarning, match=r"annotations\.json sets iscrowd for \d brush masks?; they are kept"):
            dataset = opened(root, "all")
        assert len(dataset[0].instances) == kept
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        # As COCO has them: a crowd beside objects.
        one_image(tmp_path, [brush, *ONE])
        assert [len(opened(root, "all", crowds=c)[0].instances) for c in (None, False, True)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("images\\a.png", "images/a.png"),
        ("C:\\Users\\me\\a.png", "images/a.png"),
        ("../../label-studio/media/upload/4/a.png", "images/a.png"),
        ("images/1/a.png", "images/a.png"),
        ("day/1/a.png", "images/1/a.png"),
        ("images/my%20pic.png", "images/my pic.png"),
        ("a.png", "images/A.PNG"),
    ],
)
def test_images_are_found_by_the_end_of_their_name(tmp_path, written, stored):
    save(picture(), tmp_path / stored)
    write_coco(tmp_path / "annotations.json", [(0, written)], ONE)
    with pytest.warns(DataWarning, match=r"names 1 image that the folder does not hold; files with the same end"):
        dataset = opened(tmp_path, "all")
    assert dataset.names == [stored]
    assert dataset[0].instances[0].area == 20


def test_a_name_that_fits_two_files_in_another_case_fits_none(tmp_path):
    for name in ("A.png", "a.PNG", "b.png"):
        save(picture(), tmp_path / "images" / name)
    write_coco(tmp_path / "annotations.json", [(0, "a.png"), (1, "b.png")], [*ONE, ONE[0] | {"image_id": 1}])
    if len(list((tmp_path / "images").iterdir())) == 3:  # not where A.png and a.PNG are one file
        assert opened(tmp_path, "all").skipped == [Skipped("a.png", "image file missing")]


def test_images_outside_of_the_folder_are_read_with_a_warning(tmp_path):
    outside = save(picture(), tmp_path / "elsewhere/a.png")
    root = tmp_path / "set"
    for written in (str(outside), "../../elsewhere/a.png"):
        save(picture(), root / "images/b.png")
        write_coco(root / "annotations.json", [(0, "b.png"), (1, written)], [*ONE, ONE[0] | {"image_id": 1}])
        with pytest.warns(DataWarning, match=r"names 1 image outside of .*images.*elsewhere/a\.png for instance"):
            dataset = opened(root, "all")
        assert [len(sample.instances) for sample in dataset] == [1, 1]


def test_lvis_names_its_images_by_their_address(tmp_path):
    save(picture(), tmp_path / "train2017/000000000009.jpg")
    write_coco(tmp_path / "annotations.json", [(0, "")], ONE)
    rewritten(tmp_path, {"file_name": "", "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg"})
    assert opened(tmp_path, "all").names == ["train2017/000000000009.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipes_do_not_hang(tmp_path):
    root = one_image(tmp_path, ONE)
    (root / "images/a.png").unlink()
    os.mkfifo(root / "images/a.png")
    with pytest.raises(DataError, match=r"a\.png is a pipe"):
        opened(root, "all")[0]
    os.mkfifo(root / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json is a pipe"):
        opened(root, "all", annotations="pipe.json")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"segmentation": [[1, 2, 9, 2, 9, 10**400]]}, "polygon with something that is not a number"),
        ({"segmentation": {"size": [24, 32], "counts": [2**70]}}, "runs do not add up"),
        ({"segmentation": {"size": [2**70, float("inf")], "counts": [2]}}, "without size and counts"),
        ({"segmentation": {"size": [24], "counts": [2]}}, "without size and counts"),
        ({"segmentation": {"size": [24, 32], "counts": [768]}, "bbox": [None] * 4}, "empty mask"),
        ({"segmentation": {"size": [24, 32], "counts": [768]}, "bbox": [2**70, 1, 5, 5]}, "outside of the image"),
        ({"segmentation": [[0, 0, 30, 20] * 150_000]}, "outline is longer than 5,000,000 px"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_out_of_range_leave_one_annotation_out(tmp_path, annotation, reason):
    root = rewritten(one_image(tmp_path, [*ONE, *ONE]), annotation=annotation)
    sample, skipped = opened(root, "all").examine(0)
    assert [i.id for i in sample.instances] == ["2"]
    assert [reason in skip.why for skip in skipped] == [True], skipped


HUGE = "9" * 5000  # Python reads whole numbers of up to 4300 digits


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (HUGE, "no segmentation, only a box"),
        ("1e999", "no segmentation, only a box"),
        (f"[[1, 2, 9, 2, 9, {HUGE}]]", "polygon with a number that is not finite"),
        (f'{{"size": [24, 32], "counts": [{HUGE}]}}', "neither a string nor a list of whole numbers"),
        ("[[1, 2, 9, 2, 9, 1e999]]", "polygon with a number that is not finite"),
    ],
    ids=lambda value: value[:20],
)
def test_numbers_that_python_does_not_read_leave_one_annotation_out(tmp_path, segmentation, reason):
    root = rewritten(one_image(tmp_path, [*ONE, *ONE]), annotation={"segmentation": "here", "area": "there"})
    text = (root / "annotations.json").read_text().replace('"here"', segmentation).replace('"there"', HUGE)
    (root / "annotations.json").write_text(text)
    sample, skipped = opened(root, "all").examine(0)
    assert [i.id for i in sample.instances] == ["2"]
    assert [reason in skip.why for skip in skipped] == [True], skipped


def test_nesting_and_encodings_are_refused_by_name(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"images": [], "annotations": ' + "[" * 50_000 + "]" * 50_000 + ', "categories": []}')
    with pytest.raises(DataError, match=r"labels\.json is not COCO's: its lists are nested too deeply"):
        opened(path, layout="coco")
    root = one_image(tmp_path / "set", ONE, {1: "größe"})
    text = json.dumps(json.loads((root / "annotations.json").read_text()), ensure_ascii=False)
    (root / "annotations.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"annotations\.json is not .*UTF-8|not COCO's.*[Uu]tf-8"):
        opened(root / "annotations.json")
    (root / "annotations.json").write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match=r"It is in UTF-16; save it as UTF-8"):
        opened(root / "annotations.json")


def test_a_note_in_another_encoding_does_no_harm(tmp_path):
    root = one_image(tmp_path, [ONE[0] | {"note": "größe"}])
    text = json.dumps(json.loads((root / "annotations.json").read_text()), ensure_ascii=False)
    (root / "annotations.json").write_text(text, encoding="latin-1")
    assert opened(root, "all")[0].instances[0].area == 20


def test_the_index_knows_where_each_annotation_stands(tmp_path):
    annotation = {"image_id": 0, "area": float("nan"), "segmentation": polygon(1, 1, 5, 5)}
    path = write_coco(tmp_path / "a.json", [(0, "a.png")], [annotation | {"note": "ß" * n} for n in range(9)])
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False, indent=2)
    path.write_text("\ufeff " + text, encoding="utf-8")
    file = index_coco(path)
    assert [annotation["note"] for annotation in file.annotations(np.array([8, 0, 3]))] == ["ß" * 8, "", "ßßß"]


def test_hidden_annotation_files_are_passed_over(coco_root):
    for name in ("._instances_train2017.json", ".annotations.json"):
        (coco_root / "annotations" / name).write_bytes(b"\0\5\x16\7")  # as macOS leaves them on other disks
    assert len(opened(coco_root)) == 3


def test_a_pool_of_any_name_is_known_by_keys_that_a_block_may_cut_in_two(tmp_path, monkeypatch):
    save(picture(), tmp_path / "images/a.png")
    write_coco(tmp_path / "mine.json", [(0, "a.png")], ONE)
    for block in (16, 17, 23, 2**20):
        monkeypatch.setattr(coco_layout, "_BLOCK", block)
        assert opened(tmp_path, "all").names == ["images/a.png"]
    (tmp_path / "mine.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match=r"layout of .* is not known"):
        opened(tmp_path, "all")
