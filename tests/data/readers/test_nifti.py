import gzip
import json
import os

import numpy as np
import pytest

from samparser.data import DataError, DataSettings, DataWarning, detect_layout, open_dataset

nibabel = pytest.importorskip("nibabel", reason="the medical extra is not installed")

LPS = np.diag([-1.5, -1.5, 5, 1])  # columns to the patient's left, rows to the back: as scanners store it


def volumes():
    """A volume (20, 16, 6) in Hounsfield units, x to the left, y to the back, z to the head, with two organs."""
    hounsfield = np.full((20, 16, 6), -1000, dtype=np.int16)
    labels = np.zeros((20, 16, 6), dtype=np.uint8)
    hounsfield[2:14, 1:13, 1:4], labels[2:14, 1:13, 1:4] = 40, 1
    hounsfield[15:18, 2:5, 2], labels[15:18, 2:5, 2] = 240, 13
    return hounsfield, labels


def write(array, path, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def flare(root, cases=("0001",)):
    hounsfield, labels = volumes()
    for case in cases:
        write(hounsfield, root / f"images/FLARE22_Tr_{case}_0000.nii.gz")
        write(labels, root / f"labels/FLARE22_Tr_{case}.nii.gz")
    return root


def opened(root, split="all", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def test_slices_with_a_large_enough_organ_are_samples(tmp_path):
    dataset = opened(flare(tmp_path))
    assert (dataset.layout, len(dataset.classes), dataset.classes[13]) == ("nifti", 13, "left kidney")
    assert dataset.names == [f"images/FLARE22_Tr_0001#{n:04d}" for n in (1, 2, 3)]
    sample, skipped = dataset.examine(1)
    assert (sample.volume, sample.slice_index) == ("images/FLARE22_Tr_0001", 2)
    assert [(i.class_id, i.box) for i in sample.instances] == [(1, (2, 1, 14, 13))]  # the kidney has 9 px only
    assert [skip.why for skip in skipped] == ["smaller than 100 px"]
    assert [i.class_id for i in opened(tmp_path, min_area=5)[1].instances] == [1, 13]
    assert [skip.why for skip in dataset.skipped] == ["slice without an organ of 100 px"] * 3


def test_hounsfield_units_are_windowed_to_grey(tmp_path):
    image = opened(flare(tmp_path), min_area=5)[1].image
    assert image.shape == (16, 20, 3)
    assert image[0, 0].tolist() == [0, 0, 0]  # air
    assert image[5, 5].tolist() == [128] * 3  # the level, 40
    assert image[3, 16].tolist() == [255] * 3  # level + width / 2
    wide = opened(tmp_path, min_area=5, window_level=0.0, window_width=2000.0)[1].image
    assert wide[5, 5, 0] == int((40 + 1000) / 2000 * 255 + 0.5)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "RPI", "SAR", "PSL", "AIL"])
@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_any_stored_orientation_gives_the_same_slices(tmp_path, axes, suffix):
    expected = opened(flare(tmp_path / "straight"), min_area=5)
    hounsfield, labels = volumes()
    stored = nibabel.orientations
    change = stored.ornt_transform(stored.axcodes2ornt("LPS"), stored.axcodes2ornt(tuple(axes)))
    for array, name in ((hounsfield, "images/c_0000"), (labels, "labels/c")):
        turned = nibabel.Nifti1Image(array, LPS).as_reoriented(change)
        assert "".join(nibabel.aff2axcodes(turned.affine)) == axes
        path = tmp_path / "turned" / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(turned, path)
    found = opened(tmp_path / "turned", min_area=5)
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.image, theirs.image)
        assert [i.box for i in ours.instances] == [i.box for i in theirs.instances]
        assert ours.slice_index == theirs.slice_index


def test_a_scaled_volume_is_read_in_hounsfield_units(tmp_path):
    flare(tmp_path)
    hounsfield, _ = volumes()
    for suffix in ("nii.gz", "nii"):
        path = tmp_path / f"images/FLARE22_Tr_0001_0000.{suffix}"
        for old in (tmp_path / "images").iterdir():
            old.unlink()
        image = nibabel.Nifti1Image(((hounsfield + 1024) // 2).astype(np.int16), LPS)
        image.header.set_slope_inter(2, -1024)
        nibabel.save(image, path)
        assert opened(tmp_path)[0].image[5, 5, 0] == 128


def test_abdomen_1k_names_its_four_organs(tmp_path):
    hounsfield, labels = volumes()
    write(hounsfield, tmp_path / "AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz")
    write(np.minimum(labels, 2), tmp_path / "Mask/Case_00001.nii.gz")
    assert detect_layout(tmp_path) == "nifti"
    assert opened(tmp_path).classes == {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}


def test_nnunet_names_its_classes_in_a_file(tmp_path):
    hounsfield, labels = volumes()
    write(hounsfield, tmp_path / "imagesTr/case_0000.nii.gz")
    write(np.minimum(labels, 2), tmp_path / "labelsTr/case.nii.gz")
    for text in (
        '{"labels": {"0": "background", "1": "a", "2": "b"}}',
        '{"labels": {"background": 0, "a": 1, "b": 2}}',
    ):
        (tmp_path / "dataset.json").write_text(text)
        assert opened(tmp_path).classes == {1: "a", 2: "b"}
    for text in ("[" * 50_000, '{"labels": {"a": ' + "9" * 5000 + "}}", '{"labels": {"a": 1e999}}', "[]"):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset\.json has no labels as nnU-Net writes them"):
            opened(tmp_path)


def test_slices_may_be_divided_by_seed_as_in_the_paper(tmp_path):
    flare(tmp_path, [f"{n:04d}" for n in range(1, 6)])
    train, val = (opened(tmp_path, split, split_volumes=False, val_ratio=0.4) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 6)
    assert {sample.volume for sample in train} & {sample.volume for sample in val}
    assert sorted(train.names + val.names) == opened(tmp_path).names
    assert {opened(tmp_path)[i].volume for i in range(15)} == {f"images/FLARE22_Tr_{n:04d}" for n in range(1, 6)}


def test_the_class_filter_chooses_the_slices(tmp_path):
    dataset = opened(flare(tmp_path), classes=["left kidney"], min_area=5)
    assert [sample.slice_index for sample in dataset] == [2]
    assert [i.class_id for i in dataset[0].instances] == [13]


def test_volumes_that_do_not_fit_or_open_are_counted(tmp_path):
    flare(tmp_path, ["0001", "0002", "0003", "0004"])
    write(volumes()[1][:, :, :4], tmp_path / "labels/FLARE22_Tr_0002.nii.gz")
    (tmp_path / "images/FLARE22_Tr_0003_0000.nii.gz").write_bytes(b"broken")
    (tmp_path / "labels/FLARE22_Tr_0004.nii.gz").unlink()
    dataset = opened(tmp_path)
    assert len(dataset) == 3
    whys = {skip.where.rpartition("/")[2]: skip.why for skip in dataset.skipped if "slice" not in skip.why}
    assert "must be the same" in whys["FLARE22_Tr_0002_0000.nii.gz"]
    assert "does not open as NIfTI" in whys["FLARE22_Tr_0003_0000.nii.gz"]
    assert whys["FLARE22_Tr_0004_0000.nii.gz"] == "no label volume"


def test_an_unknown_label_and_missing_pairs_are_explained(tmp_path):
    hounsfield, labels = volumes()
    write(hounsfield, tmp_path / "a/case_0000.nii.gz")
    with pytest.raises(DataError, match="No pair of volumes was found"):
        opened(tmp_path)
    write(labels * 2, tmp_path / "b/case.nii.gz")
    with pytest.raises(DataError, match=r"case\.nii\.gz has the label 26, which names no organ"):
        opened(tmp_path)
    assert len(opened(tmp_path, class_names=["2=liver", "26=kidney"])) == 3


def test_whole_volumes_are_divided_by_seed_or_by_name(tmp_path):
    flare(tmp_path, [f"{n:04d}" for n in range(1, 6)])
    parts = [opened(tmp_path, split) for split in ("train", "val")]
    volumes_of = [{sample.volume for sample in part} for part in parts]
    assert [len(part) for part in parts] == [12, 3]
    assert [len(names) for names in volumes_of] == [4, 1]
    assert not volumes_of[0] & volumes_of[1]
    lists = {"train": ["FLARE22_Tr_0001", "images/FLARE22_Tr_0003"], "val": ["FLARE22_Tr_0002#0001"]}
    (tmp_path / "split.json").write_text(json.dumps(lists))
    assert {sample.volume[-4:] for sample in opened(tmp_path, "train", split_file="split.json")} == {"0001", "0003"}
    assert len(opened(tmp_path, "train", split_file="split.json")) == 6
    (tmp_path / "split.json").write_text(json.dumps({"val": ["images/FLARE22_Tr_0002#0001"]}))
    assert opened(tmp_path, "val", split_file="split.json").names == ["images/FLARE22_Tr_0002#0001"]


def test_too_few_volumes_to_divide_say_how_to_go_on(tmp_path):
    flare(tmp_path, ["0001", "0002"])
    with pytest.raises(DataError, match=r"val split .* is empty: its ratio of the 2 volumes .*split_volumes to false"):
        opened(tmp_path, "val")
    assert [len(opened(tmp_path, split, split_volumes=False)) for split in ("train", "val")] == [5, 1]


def test_a_label_file_that_was_corrected_is_read_again(tmp_path):
    flare(tmp_path)
    assert opened(tmp_path)[0].instances[0].class_id == 1
    write(volumes()[1] * 3, tmp_path / "labels/FLARE22_Tr_0001.nii.gz")
    assert opened(tmp_path, class_names=["3=spleen", "39=kidney"])[0].instances[0].class_id == 3


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda v: (v + 1000) * 2.5, np.int16),
        (lambda v: (v + 1000) / 1240, np.float32),
        (lambda v: v + 1024, np.uint16),
    ],
    ids=["MR", "0 to 1", "without an offset"],
)
@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_volumes_that_are_not_in_hounsfield_units_are_shown_by_their_percentiles(tmp_path, change, dtype, suffix):
    hounsfield, labels = volumes()
    values = change(hounsfield.astype(np.float64)).astype(dtype)
    write(values, tmp_path / f"imagesTr/c_0000.{suffix}")
    write(labels, tmp_path / f"labelsTr/c.{suffix}")
    dataset = opened(tmp_path)
    with pytest.warns(DataWarning, match=r"not Hounsfield units.*0\.5 and 99\.5 percentiles.*window_level") as told:
        images = [sample.image for sample in dataset]
    assert len(told) == 1
    low, high = np.percentile(values[values != 0], [0.5, 99.5])
    plane = values[:, :, 2].T.astype(np.float64)
    expected = np.clip((plane - low) / (high - low) * 255, 0, 255)
    assert np.abs(images[1][:, :, 0] - expected).max() < 0.51
    level, width = float(values.mean()), float(np.ptp(values))
    windowed = opened(tmp_path, window_level=level, window_width=width)[1].image
    assert np.abs(windowed[:, :, 0] - np.clip((plane - level + width / 2) / width * 255, 0, 255)).max() < 0.51


def test_a_few_low_values_beside_the_edges_make_no_ct(tmp_path):
    hounsfield, labels = volumes()
    magnetic = (hounsfield.astype(int) - hounsfield.min()) * 5
    magnetic.flat[np.flatnonzero(magnetic)[:2]] = -80  # where a spline overshoots
    write(magnetic.astype(np.int16), tmp_path / "imagesTr/c_0000.nii.gz")
    write(labels, tmp_path / "labelsTr/c.nii.gz")
    with pytest.warns(DataWarning, match="not Hounsfield units"):
        assert opened(tmp_path)[1].image.min() == 0  # within the window of CT, 0 is a grey of 102


def test_ct_that_was_clipped_keeps_its_window(tmp_path):
    hounsfield, labels = volumes()
    write(np.clip(hounsfield, -100, 150), tmp_path / "imagesTr/c_0000.nii.gz")
    write(labels, tmp_path / "labelsTr/c.nii.gz")
    assert np.unique(opened(tmp_path)[1].image).tolist() == [38, 128, 198]


@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_labels_with_the_error_of_a_scale_are_whole_numbers(tmp_path, suffix, dtype):
    flare(tmp_path)
    (tmp_path / "labels/FLARE22_Tr_0001.nii.gz").unlink()
    stored = nibabel.Nifti1Image(volumes()[1].astype(np.float32), LPS)
    stored.header.set_data_dtype(dtype)
    path = tmp_path / f"labels/FLARE22_Tr_0001.{suffix}"
    nibabel.save(stored, path)
    assert not set(np.unique(nibabel.load(path).get_fdata())) <= {0, 1, 13}  # what makes it hard
    assert [i.class_id for i in opened(tmp_path, min_area=5)[1].instances] == [1, 13]
    write(volumes()[1].astype(np.float32) * 0.5, path)
    with pytest.raises(DataError, match=r"holds values such as 0\.5; labels are whole numbers"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz"),
        ("Segthor/images/c_0000.nii.gz", "Segthor/labels/c_0000.nii.gz"),
        ("img/img0001.nii.gz", "label/label0001.nii.gz"),
        ("c_0000.nii", "c.nii.gz"),
    ],
)
def test_images_and_labels_are_told_apart_by_their_folders_or_names(tmp_path, image, label):
    hounsfield, labels = volumes()
    write(hounsfield, tmp_path / image)
    write(labels, tmp_path / label)
    assert [i.class_id for i in opened(tmp_path, layout="nifti")[0].instances] == [1]


def test_of_several_labels_of_one_name_the_nearest_is_taken(tmp_path):
    hounsfield, labels = volumes()
    for part in ("train", "test"):
        write(hounsfield, tmp_path / part / "images/c_0000.nii.gz")
        write(labels, tmp_path / part / "labels/c.nii.gz")
    assert len(opened(tmp_path, layout="nifti")) == 6
    write(labels, tmp_path / "train/masks/c.nii.gz")
    dataset = opened(tmp_path, layout="nifti")
    assert {sample.volume for sample in dataset} == {"test/images/c"}
    assert any("several label volumes" in skip.why for skip in dataset.skipped)


def test_a_fourth_dimension_of_one_is_none(tmp_path):
    hounsfield, labels = volumes()
    for suffix in ("nii.gz", "nii"):
        root = tmp_path / suffix
        write(hounsfield[..., None], root / f"images/c_0000.{suffix}")
        write(labels[..., None], root / f"labels/c.{suffix}")
        assert np.array_equal(opened(root)[0].image, opened(flare(tmp_path / "three"))[0].image)
        write(np.stack([hounsfield] * 4, axis=-1), root / f"images/c_0000.{suffix}")
        with pytest.raises(DataError, match=r"has 4 dimensions \(20 x 16 x 6 x 4\); a CT volume has 3"):
            opened(root)


def damaged_volume(path, how):
    """A volume whose header, size or values are wrong."""
    hounsfield, _ = volumes()
    if how == "colours":
        kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(np.zeros((20, 16, 6), kind), LPS), path)
        return
    write(hounsfield, path)
    content = bytearray(path.read_bytes())
    if how == "header":
        content[344:348] = b"xxxx"
    elif how == "type":
        content[70:72] = (999).to_bytes(2, "little")
    elif how == "size":
        content[42:48] = (32767).to_bytes(2, "little") * 3
    elif how == "affine":
        content[280:284] = np.float32(np.nan).tobytes()
    elif how == "short":
        del content[-500:]
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_volume_whose_values_end_early_is_named_and_the_others_are_read(tmp_path, kind, suffix):
    flare(tmp_path, ["0001", "0002"])
    hounsfield, labels = volumes()
    labels[2:14, 1:13, 5] = 1
    places = {
        "images": tmp_path / f"images/FLARE22_Tr_0003_0000.{suffix}",
        "labels": tmp_path / f"labels/FLARE22_Tr_0003.{suffix}",
    }
    write(hounsfield, places["images"])
    write(labels, places["labels"])
    path = places[kind]
    # Fewer bytes than the header has, so the size of the file alone does not tell; a packed file is whole as such.
    if suffix == "nii":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))
    dataset = opened(tmp_path)
    unread = []
    for number, name in enumerate(dataset.names):
        if "Tr_0003" not in name:
            assert dataset[number].volume == name.partition("#")[0]
            continue
        with pytest.raises(DataError, match=f"{path} is damaged or incomplete: "):
            _ = dataset[number]
        unread.append(name)
    names = [f"images/FLARE22_Tr_{case}#000{slice}" for case in ("0001", "0002") for slice in (1, 2, 3)]
    third = [f"images/FLARE22_Tr_0003#000{slice}" for slice in (1, 2, 3, 5)]
    if kind == "labels":
        assert (dataset.names, unread) == (names, [])
        (skipped,) = [skip for skip in dataset.skipped if skip.where == str(places["images"])]
        assert skipped.why.startswith(f"{path} is damaged or incomplete: ")
    else:
        assert (dataset.names, unread) == (names + third, third)


@pytest.mark.parametrize("how", ["colours", "header", "type", "size", "affine", "short", "pipe", "folder"])
def test_one_bad_volume_is_named_and_the_others_are_read(tmp_path, how):
    flare(tmp_path, ["0001", "0002"])
    write(volumes()[1], tmp_path / "labels/FLARE22_Tr_0003.nii.gz")
    path = tmp_path / "images/FLARE22_Tr_0003_0000.nii"
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        damaged_volume(path, how)
    dataset = opened(tmp_path)
    assert {sample.volume[-4:] for sample in dataset} == {"0001", "0002"}
    (skipped,) = [skip for skip in dataset.skipped if skip.where == str(path)]
    assert "FLARE22_Tr_0003_0000.nii" in skipped.why


def test_a_label_without_a_name_in_one_of_many_volumes_leaves_it_out(tmp_path):
    flare(tmp_path, ["0001", "0002", "0003"])
    write(volumes()[1] * 2, tmp_path / "labels/FLARE22_Tr_0002.nii.gz")
    dataset = opened(tmp_path)
    assert {sample.volume[-4:] for sample in dataset} == {"0001", "0003"}
    assert any("has the label 26, which names no organ" in skip.why for skip in dataset.skipped)


def test_hidden_files_are_no_volumes(tmp_path):
    flare(tmp_path)
    for name in ("images/._FLARE22_Tr_0001_0000.nii.gz", "labels/.ipynb_checkpoints/FLARE22_Tr_0001.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert len(opened(tmp_path)) == 3
