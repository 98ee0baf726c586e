import json
import math
import os
import random
import re
import tracemalloc
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from samparser.data import DataError
from samparser.data.readers import coco_index
from samparser.data.readers.coco_index import index_coco
from samparser.data.readers.coco_whole import read_whole
from tests.data.files import write_coco

# What a search for brackets and quotes would stumble over.
TEXTS = st.sampled_from(
    ["", "größe", "図", "}", "},{", '"', '\\"', "\\", "\\\\", "]}", "NaN", '}], "images": [{', "\u2028"]
)
NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False, width=32)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
EXTRA = st.dictionaries(st.sampled_from(["note", "größe", "}", "area", "keypoints"]), VALUES, max_size=2)
POLYGON = st.lists(st.lists(st.floats(0, 640, width=32), min_size=6, max_size=10), min_size=1, max_size=2)
RUNS = st.fixed_dictionaries(
    {"size": st.just([4, 4]), "counts": st.just([3, 5, 8]) | st.sampled_from(["35\\8", "0g4"])}
)
ATTRIBUTES = st.just({}) | st.just({"attributes": {"occluded": False}})


@st.composite
def coco(draw) -> dict:
    """A COCO file: keys, images and annotations in any order, ids of any size, and much that is not COCO's."""
    ids = draw(st.lists(st.integers(-5, 2**40), min_size=1, max_size=6, unique=True))
    classes = draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True))
    shuffled = draw(st.randoms(use_true_random=False))
    images = [{"id": id, "file_name": f"{draw(TEXTS)}{n}.png", **draw(EXTRA)} for n, id in enumerate(ids)]
    for image in images:
        image |= draw(st.just({}) | st.just({"height": 480, "width": 640}) | st.just({"height": "48", "width": "odd"}))
    annotations = [
        {
            "id": number + 1,
            "image_id": shuffled.choice(ids),
            "category_id": shuffled.choice(classes),
            "segmentation": segmentation,
            **draw(st.just({}) | st.just({"iscrowd": 0}) | st.just({"iscrowd": 1})),
            **draw(ATTRIBUTES),
            **draw(EXTRA),
        }
        for number, segmentation in enumerate(draw(st.lists(POLYGON | RUNS | st.just([]) | st.none(), max_size=12)))
    ]
    content = {
        "images": [in_any_order(image, shuffled) for image in images],
        "annotations": [in_any_order(annotation, shuffled) for annotation in annotations],
        "categories": [{"id": id, "name": f"{draw(TEXTS)}{id}"} for id in classes],
        "info": draw(EXTRA),
        "licenses": draw(st.lists(EXTRA, max_size=2)),
        "version": draw(st.just("1.0") | st.just(1) | st.none()),
    }
    return in_any_order(content, shuffled)


def in_any_order(content: dict, generator: random.Random) -> dict:
    keys = list(content)
    generator.shuffle(keys)
    return {key: content[key] for key in keys}


FORMS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 1]),
        "separators": st.sampled_from([(",", ":"), (", ", ": ")]),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("coco")


@settings(max_examples=30)
@given(content=coco(), form=FORMS, window=st.sampled_from([512, 700, 2**20]))
def test_an_index_is_what_json_and_pycocotools_read(folder, content, form, window):
    path = folder / "labels.json"
    path.write_text(json.dumps(content, **form), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_index, "read_whole", None)  # every such file is read by windows
        file = index_coco(path, window)
    images, annotations, classes = (content[key] for key in ("images", "annotations", "categories"))
    assert file.names == [image["file_name"] for image in images]
    assert [file.size(n) for n in range(len(images))] == [
        {None: (None, None), 480: (480, 640), "48": (48, "odd")}[image.get("height")] for image in images
    ]
    assert file.categories == {row["id"]: row["name"] for row in classes}
    assert file.annotations(np.arange(len(annotations))) == annotations
    assert file.category_id.values.tolist() == [row["category_id"] for row in annotations]
    assert file.segmented.values.tolist() == [bool(row["segmentation"]) for row in annotations]
    assert file.crowd.values.tolist() == [bool(row.get("iscrowd")) for row in annotations]
    assert file.runs.values.tolist() == [isinstance(row["segmentation"], dict) for row in annotations]
    assert file.brush.values.tolist() == ["attributes" in row for row in annotations]
    with redirect_stdout(StringIO()):
        reference = COCO(str(path))
    for place, image in enumerate(images):
        mine = np.flatnonzero(file.image.values == place)
        assert [a["id"] for a in file.annotations(mine)] == reference.getAnnIds(imgIds=[image["id"]])


@settings(max_examples=60)
@given(
    content=coco(),
    form=FORMS,
    place=st.floats(0, 1, exclude_max=True),
    instead=st.sampled_from([b"", b"}", b"]", b",", b"{", b'"', b"\\", b"0", b"\xff", b"NaN", b"}, {", b"null"]),
    cut=st.integers(0, 3),
)
def test_a_damaged_file_is_read_or_refused_as_by_a_parser_of_the_whole(folder, content, form, place, instead, cut):
    path, text = folder / "damaged.json", json.dumps(content, **form).encode("utf-8", "surrogatepass")
    at = int(place * len(text))
    path.write_bytes(text[:at] + instead + text[at + cut :])
    assert outcome(lambda: index_coco(path, 512)) == outcome(
        lambda: coco_index._indexed(path, read_whole(path, coco_index._DECODERS))
    )


def outcome(read):
    """What reading gives, in a form that compares: the message, or all columns."""
    try:
        file = read()
    except DataError as error:
        return str(error)
    columns = (file.image, file.category_id, file.segmented, file.crowd, file.runs, file.brush, file.start, file.end)
    sizes = [file.size(n) for n in range(len(file.names))]
    return list(file.names), sizes, file.categories, [column.values.tolist() for column in columns]


def test_numbers_that_are_not_finite_do_not_end_the_reading_by_windows(tmp_path, monkeypatch):
    rows = [{"image_id": 0, "area": value, "note": "NaN, }, {"} for value in (math.nan, 1.5, math.inf, -math.inf)]
    path = write_coco(tmp_path / "a.json", [(0, "a.png")], rows * 20)
    monkeypatch.setattr(coco_index, "read_whole", None)
    found = index_coco(path, 512).annotations(np.arange(80))
    assert [str(row["area"]) for row in found] == ["nan", "1.5", "inf", "-inf"] * 20


def test_an_annotation_longer_than_the_window_is_read(tmp_path, monkeypatch):
    rows = [{"image_id": 0, "segmentation": [[n] * 5000, [0] * 6]} for n in range(3)]
    path = write_coco(tmp_path / "a.json", [(0, "a.png")], rows)
    monkeypatch.setattr(coco_index, "read_whole", None)
    assert [row["segmentation"][0][0] for row in index_coco(path, 512).annotations(np.arange(3))] == [0, 1, 2]


def test_a_list_that_is_not_wanted_may_be_longer_than_the_window(tmp_path, monkeypatch):
    path = write_coco(tmp_path / "a.json", [(0, "a.png")], [{"image_id": 0}])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"frames": [{"n": n} for n in range(2000)], **content}))
    monkeypatch.setattr(coco_index, "read_whole", None)
    assert index_coco(path, 512).names == ["a.png"]


def test_two_data_sets_share_the_index_of_one_file(tmp_path):
    path = write_coco(tmp_path / "a.json", [(0, "a.png")], [{"image_id": 0}])
    os.utime(path, (1, 1))
    # Its other time is that of the last change of anything about it, and that was just now.
    first = index_coco(path)
    assert index_coco(path) is not first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_index, "_SETTLED", -60.0)
        first = index_coco(path)
        assert index_coco(path) is first
        write_coco(path, [(0, "b.png")], [{"image_id": 0}])
        assert index_coco(path).names == ["b.png"]
    assert first.names == ["a.png"]


def test_many_unknown_ids_are_named_in_their_order(tmp_path):
    rows = [{"image_id": n} for n in (9, 0, 7, 9, 8)]
    path = write_coco(tmp_path / "a.json", [(0, "a.png"), (1, "b.png")], rows)
    with pytest.raises(DataError, match=re.escape("4 annotations of") + r".* have image_id 9, 7, 8, but .* ids 0, 1\."):
        index_coco(path)


def test_an_index_takes_a_part_of_the_memory_that_the_file_would(tmp_path):
    outline = [[n / 7 for n in range(80)]]
    rows = [{"image_id": n % 50, "segmentation": outline} for n in range(4000)]
    path = write_coco(tmp_path / "a.json", [(n, f"{n}.png") for n in range(50)], rows)
    index_coco(path)
    tracemalloc.start()
    try:
        file = index_coco(path, 2**16)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(file.image) == 4000
    assert most < path.stat().st_size / 6
