from samparser.cli import shared
from samparser.data import DataSettings
from tests.data.files import picture, polygon, save, write_coco


def test_small_sets_are_read_before_a_run_and_larger_ones_are_not(tmp_path, monkeypatch, capsys):
    images = [(n, f"{n}.png") for n in range(4)]
    for _, name in images:
        save(picture(), tmp_path / "train" / name)
    (tmp_path / "train/2.png").write_bytes(b"broken")
    rows = [{"image_id": n, "segmentation": polygon(1, 1, 9, 9)} for n in range(4)]
    write_coco(tmp_path / "train.json", images, rows)
    settings = DataSettings(data=str(tmp_path))
    assert len(shared.open_split(settings, "train")) == 3
    assert "train: 3 images of layout coco, 1 entry skipped" in capsys.readouterr().out
    monkeypatch.setattr(shared, "_SCANNED_UP_TO", 3)
    for _, name in images:
        (tmp_path / "train" / name).write_bytes(b"broken")
    assert len(shared.open_split(settings, "train")) == 4
