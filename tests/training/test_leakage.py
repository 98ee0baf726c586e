from types import SimpleNamespace

from samparser.training import leakage


def test_of_each_file_with_a_twin_in_size_a_part_is_read_once(tmp_path, monkeypatch):
    sets = []
    for split, sizes in (("train", [100, 100, 100, 200, 300]), ("val", [100, 100, 400])):
        (tmp_path / split).mkdir()
        names = [f"{split}/{number}.tif" for number in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            (tmp_path / name).write_bytes(name.encode().ljust(size, b" ")[::-1])
        sets.append(SimpleNamespace(root=tmp_path, names=[*names, f"{split}/gone.tif", f"{split}\0b"]))
    read, part = [], leakage._part
    monkeypatch.setattr(leakage, "_part", lambda path, size: read.append(path) or part(path, size))
    monkeypatch.setattr(leakage, "_PROBE", 10)  # of the middle, which is the same in all: so they are compared in full
    assert leakage.shared_image(*sets) is None
    wanted = ["train/0.tif", "train/1.tif", "train/2.tif", "val/0.tif", "val/1.tif"]
    assert sorted(read) == [str(tmp_path / name) for name in wanted]
