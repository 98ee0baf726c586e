import json

import numpy as np
import pytest

from samparser.data import DataError, DataSettings, detect_layout, open_dataset

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


def test_slices_are_divided_eighty_to_twenty_by_seed(tmp_path):
    flare(tmp_path, [f"{n:04d}" for n in range(1, 6)])
    train, val = opened(tmp_path, "train"), opened(tmp_path, "val")
    assert (len(train), len(val)) == (12, 3)
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


def test_whole_volumes_may_be_divided_by_seed_or_by_name(tmp_path):
    flare(tmp_path, [f"{n:04d}" for n in range(1, 6)])
    parts = [opened(tmp_path, split, split_volumes=True) for split in ("train", "val")]
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


def test_a_label_file_that_was_corrected_is_read_again(tmp_path):
    flare(tmp_path)
    assert opened(tmp_path)[0].instances[0].class_id == 1
    write(volumes()[1] * 3, tmp_path / "labels/FLARE22_Tr_0001.nii.gz")
    assert opened(tmp_path, class_names=["3=spleen", "39=kidney"])[0].instances[0].class_id == 3
