import io
import sys

import numpy as np
import pytest
from PIL import Image as Picture
from pycocotools import mask as coco_mask

from samparser.data import DataError, DataSettings, Skipped, convert_dataset, detect_layout, from_datasets, open_dataset
from samparser.data.readers.hf_datasets import Rows, reader_of
from tests.data.files import full_mask, picture, rectangle, runs


@pytest.fixture
def hf():
    return pytest.importorskip("datasets")


STAR = [3.2, 2.1, 20.7, 5.5, 28.1, 21.9, 11.4, 13.0]
MASKS = [rectangle(2, 3, 9, 12), rectangle(12, 5, 20, 20)]


def masks_set(hf, rows=3, **options):
    """Rows with a picture and a mask of ids 1 and 2."""
    ids = (MASKS[0] + 2 * MASKS[1]).astype(np.uint8)
    columns = {"image": [Picture.fromarray(picture(seed=n)) for n in range(rows)]}
    columns["mask"] = [Picture.fromarray(ids)] * rows
    return hf.Dataset.from_dict(columns, features=hf.Features({"image": hf.Image(), "mask": hf.Image()}))


def objects_set(hf, objects, names=("cat", "dog"), fields=None):
    """One row with objects; `fields` are the features of one object."""
    label = hf.ClassLabel(names=list(names)) if names else hf.Value("string")
    fields = {"category": label} | (fields or {"segmentation": hf.List(hf.List(hf.Value("float64")))})
    features = hf.Features({"image": hf.Image(), "objects": hf.List(fields)})
    return hf.Dataset.from_dict({"image": [Picture.fromarray(picture())], "objects": [objects]}, features=features)


def shown(sample):
    return [(i.class_id, full_mask(i, 24, 32).tobytes()) for i in sample.instances]


def test_masks_beside_images_are_read_as_mask_files_are(hf):
    dataset = from_datasets(masks_set(hf), DataSettings(data=".", instances="ids"))
    assert (dataset.layout, dataset.names) == ("datasets", ["000000", "000001", "000002"])
    for number, sample in enumerate(dataset):
        assert np.array_equal(sample.image, picture(seed=number))
        assert shown(sample) == [(1, mask.tobytes()) for mask in MASKS]
    named = from_datasets(masks_set(hf), DataSettings(data=".", class_names=["1=cat", "2=dog"], classes=["dog"]))
    assert named.classes == {2: "dog"}
    assert shown(named[0]) == [(2, MASKS[1].tobytes())]


def test_a_mask_of_unknown_meaning_is_refused_by_name(hf):
    with pytest.raises(DataError, match="000000, column mask has the values 1, 2 besides 0, and it is not known"):
        from_datasets(masks_set(hf))[0]


def test_objects_have_the_names_of_their_class_label_and_the_masks_of_pycocotools(hf):
    objects = [
        {"category": 1, "segmentation": [STAR]},
        {"category": 0, "segmentation": [[1, 1, 9, 1, 9, 8, 1, 8], [20, 1, 25, 1, 25, 5, 20, 5]]},
    ]
    dataset = from_datasets(objects_set(hf, objects))
    assert dataset.classes == {0: "cat", 1: "dog"}
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([STAR], 24, 32))).astype(bool)
    two = rectangle(1, 1, 9, 8) | rectangle(20, 1, 25, 5)
    assert shown(dataset[0]) == [(1, expected.tobytes()), (0, two.tobytes())]


def test_objects_may_have_run_lengths_and_classes_of_text(hf):
    rle = {"size": hf.List(hf.Value("int64")), "counts": hf.List(hf.Value("int64"))}
    objects = [
        {"category": name, "segmentation": {"size": [24, 32], "counts": runs(mask)}}
        for name, mask in zip(("wolf", "bear"), MASKS, strict=True)
    ]
    dataset = from_datasets(objects_set(hf, objects, names=None, fields={"segmentation": rle}))
    assert dataset.classes == {1: "bear", 2: "wolf"}
    assert shown(dataset[0]) == [(2, MASKS[0].tobytes()), (1, MASKS[1].tobytes())]


def test_objects_may_have_masks_of_the_image_or_of_their_box(hf):
    fields = {"bbox": hf.List(hf.Value("float64")), "mask": hf.Image()}
    crop = np.random.default_rng(0).random((6, 9)) < 0.5
    objects = [
        {"category": 0, "bbox": [2, 3, 7, 9], "mask": Picture.fromarray(MASKS[0].astype(np.uint8) * 255)},
        {"category": 1, "bbox": [4, 5, 9, 6], "mask": Picture.fromarray(crop)},
        {"category": 1, "bbox": [4, 5, 3, 3], "mask": Picture.fromarray(crop)},
        {"category": 1, "bbox": [4, 5, 3, 3], "mask": None},
    ]
    sample, skipped = from_datasets(objects_set(hf, objects, fields=fields)).examine(0)
    expected = np.zeros((24, 32), bool)
    expected[5:11, 4:13] = crop
    assert shown(sample) == [(0, MASKS[0].tobytes()), (1, expected.tobytes())]
    assert skipped == [
        Skipped("000000: object 3", "mask of another size than its image and its box"),
        Skipped("000000: object 4", "no segmentation, only a box"),
    ]


def test_a_stream_is_read_once_and_no_further_than_asked(hf):
    taken = []

    def rows():
        for number in range(100):
            taken.append(number)
            stored = io.BytesIO()
            Picture.fromarray(picture(seed=number)).save(stored, "PNG")
            mask = io.BytesIO()
            Picture.fromarray(MASKS[0]).save(mask, "PNG")
            yield {"image": {"bytes": stored.getvalue()}, "mask": {"bytes": mask.getvalue()}}

    features = hf.Features({"image": hf.Image(), "mask": hf.Image()})
    stream = hf.IterableDataset.from_generator(rows, features=features)
    dataset = from_datasets(stream, DataSettings(data=".", limit=4))
    assert len(dataset) == 4
    assert len(taken) <= 5
    for number in (3, 0, 3):
        assert np.array_equal(dataset[number].image, picture(seed=number))
        assert shown(dataset[number]) == [(1, MASKS[0].tobytes())]
    with pytest.raises(DataError, match="This stream does not say what its columns are"):
        from_datasets(hf.IterableDataset.from_generator(rows))


def test_a_saved_set_is_a_layout_with_its_splits(hf, tmp_path):
    hf.DatasetDict({"train": masks_set(hf), "validation": masks_set(hf, 1)}).save_to_disk(tmp_path / "two")
    masks_set(hf, 5).save_to_disk(tmp_path / "one")
    assert detect_layout(tmp_path / "two") == detect_layout(tmp_path / "one") == "datasets"
    ids = {"instances": "ids"}
    opened = [open_dataset(DataSettings(data=str(tmp_path / "two"), **ids), s) for s in ("train", "val", "all")]
    assert [dataset.names[-1] for dataset in opened] == ["train/000002", "val/000000", "val/000000"]
    pool = [open_dataset(DataSettings(data=str(tmp_path / "one"), **ids), s) for s in ("train", "val")]
    assert [len(dataset) for dataset in pool] == [4, 1]
    convert_dataset(DataSettings(data=str(tmp_path / "two"), **ids), tmp_path / "out", "coco", progress=False)
    after = open_dataset(DataSettings(data=str(tmp_path / "out")), "train")
    assert [shown(sample) for sample in after] == [shown(sample) for sample in opened[0]]
    assert np.array_equal(after[2].image, picture(seed=2))


def test_columns_of_other_names_are_named_by_the_settings(hf, tmp_path):
    renamed = masks_set(hf).rename_columns({"image": "scan", "mask": "truth"})
    dataset = from_datasets(renamed, DataSettings(data=".", images="scan", masks="truth", instances="ids"))
    assert shown(dataset[0]) == [(1, mask.tobytes()) for mask in MASKS]
    renamed.save_to_disk(tmp_path / "set")
    settings = DataSettings(data=str(tmp_path / "set"), images="truth", masks="scan")
    assert open_dataset(settings, "all").layout == "datasets"
    with pytest.raises(DataError, match="There is no column 'scna'; there are scan, truth"):
        from_datasets(renamed, DataSettings(data=".", images="scna"))
    with pytest.raises(DataError, match=r"No column of images beside one of masks, or of objects, .* among scan"):
        from_datasets(renamed.remove_columns("truth"))


def test_a_damaged_picture_stops_its_row_only(hf):
    stored = io.BytesIO()
    Picture.fromarray(picture()).save(stored, "PNG")
    rows = {"image": [stored.getvalue(), stored.getvalue()[:99]], "mask": [Picture.fromarray(MASKS[0])] * 2}
    rows["image"] = [{"bytes": data, "path": None} for data in rows["image"]]
    features = hf.Features({"image": hf.Image(), "mask": hf.Image()})
    dataset = from_datasets(hf.Dataset.from_dict(rows, features=features), DataSettings(data=".", scan=True))
    assert dataset.names == ["000000"]
    (skip,) = dataset.skipped
    assert skip.where == "000001"
    assert skip.why.startswith("000001, column image ")


def test_files_are_opened_for_who_made_the_set_and_not_for_a_saved_one(hf, tmp_path):
    Picture.fromarray(picture()).save(tmp_path / "a.png")
    Picture.fromarray(MASKS[0]).save(tmp_path / "m.png")
    features = hf.Features({"image": hf.Image(), "mask": hf.Image()})
    columns = {"image": [str(tmp_path / "a.png")], "mask": [str(tmp_path / "m.png")]}
    dataset = hf.Dataset.from_dict(columns, features=features)
    assert shown(from_datasets(dataset)[0]) == [(1, MASKS[0].tobytes())]
    settings = DataSettings(data=".")
    with pytest.raises(DataError, match=r"000000, column image holds no picture, only the name '.*a\.png' of a file"):
        reader_of(Rows(dataset, "", tmp_path), settings).read(0)


def test_deep_images_are_shown_in_the_stated_range(hf):
    values = np.full((24, 32), 1000, dtype=np.uint16)
    values[0, 0] = 3000
    columns = {"image": [Picture.fromarray(values)], "mask": [Picture.fromarray(MASKS[0])]}
    rows = hf.Dataset.from_dict(columns, features=hf.Features({"image": hf.Image(), "mask": hf.Image()}))
    image = from_datasets(rows, DataSettings(data=".", intensity_range="1000,5000"))[0].image
    assert (image[0, 0, 0], image[5, 5, 0]) == (128, 0)


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch, tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="Reading a data set of Hugging Face's datasets needs datasets"):
        open_dataset(DataSettings(data=str(tmp_path)), "train")


@pytest.mark.parametrize("text", ["", "{", '{"splits": ["train"]}'])
def test_a_saved_set_that_is_damaged_says_so(hf, tmp_path, text):
    (tmp_path / "dataset_dict.json").write_text(text)
    with pytest.raises(DataError, match="does not open as a set of Hugging Face's datasets"):
        open_dataset(DataSettings(data=str(tmp_path)), "train")
