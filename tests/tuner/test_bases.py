"""The cache of factors: exact, quiet, and harmless when something is wrong with it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from samparser.tuner import bases
from samparser.tuner.bases import ENVIRONMENT
from samparser.tuner.bases import cached_factorize as factorize_through_the_cache
from samparser.tuner.factors import factorize


@pytest.fixture
def weight(generator):
    return torch.randn(12, 20, generator=generator)


@pytest.fixture
def counted(monkeypatch):
    """Lists the shapes of what is really factored."""
    shapes = []

    def factorize_and_count(matrix):
        shapes.append(tuple(matrix.shape))
        return factorize(matrix)

    monkeypatch.setattr(bases, "factorize", factorize_and_count)
    return shapes


@pytest.fixture(autouse=True)
def no_cache_from_outside(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def cached_factorize(matrix, folder=None):
    """Factor through a cache in this folder, or in the one that the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            patch.setenv(ENVIRONMENT, str(folder))
        return factorize_through_the_cache(matrix)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_second_time_the_factors_are_read_bit_for_bit(tmp_path, weight, counted, dtype):
    weight = weight.to(dtype)
    first, second = cached_factorize(weight, tmp_path / "new"), cached_factorize(weight, tmp_path / "new")
    assert counted == [(12, 20)]
    assert_same(first, factorize(weight))
    assert_same(second, factorize(weight))
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]


def test_a_folded_view_and_its_copy_are_one_entry(tmp_path, weight, counted):
    cached_factorize(weight, tmp_path)
    cached_factorize(weight.T.contiguous().T, tmp_path)
    assert counted == [(12, 20)]


def test_each_weight_has_its_own_entry(tmp_path, weight, counted):
    for other in (weight, weight + 1e-7, weight.double(), weight.T.contiguous(), weight.reshape(20, 12)):
        assert_same(cached_factorize(other, tmp_path), factorize(other))
    assert len(counted) == len(list(tmp_path.iterdir())) == 5


def test_without_a_folder_nothing_is_written(tmp_path, weight, counted, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached_factorize(weight)
    monkeypatch.setenv(ENVIRONMENT, "")
    cached_factorize(weight)
    assert len(counted) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_folder(tmp_path, weight, counted, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    cached_factorize(weight)
    cached_factorize(weight)
    assert counted == [(12, 20)]


def damage_truncate(data):
    return data[: len(data) // 2]


def damage_flip_a_bit(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def damage_empty(data):
    return b""


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip_a_bit, damage_empty])
def test_a_damaged_file_is_reported_ignored_and_written_anew(tmp_path, weight, counted, damage):
    cached_factorize(weight, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=f"{path.name} are damaged .* written anew"):
        assert_same(cached_factorize(weight, tmp_path), factorize(weight))
    assert path.read_bytes() == whole
    assert len(counted) == 2


def test_factors_of_another_weight_under_this_ones_name_are_not_used(tmp_path, weight):
    cached_factorize(weight, tmp_path)
    (path,) = tmp_path.iterdir()
    other = torch.ones(3, 4)
    cached_factorize(other, tmp_path)
    (other_path,) = set(tmp_path.iterdir()) - {path}
    path.write_bytes(other_path.read_bytes())
    with pytest.warns(UserWarning, match=r"factors of shapes \[\(3, 3\), \(3,\), \(3, 4\)\]"):
        assert_same(cached_factorize(weight, tmp_path), factorize(weight))


def test_a_folder_that_cannot_be_made_is_reported_and_the_factors_come_all_the_same(tmp_path, weight):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=f"Could not keep factors in the cache folder .*file.*Unset {ENVIRONMENT}"):
        assert_same(cached_factorize(weight, tmp_path / "file" / "cache"), factorize(weight))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path, weight, monkeypatch):
    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(bases, "save_file", full_disk)
    with pytest.warns(UserWarning, match="No space left on device"):
        cached_factorize(weight, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_cannot_be_factored_is_refused_and_not_kept(tmp_path, weight):
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of its 240 values"):
        cached_factorize(weight, tmp_path)
    with pytest.raises(ValueError, match="meta device"):
        cached_factorize(weight.to("meta"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_many_workers_fill_one_folder_without_a_damaged_file(tmp_path, generator, monkeypatch):
    # Threads stand for processes: the cache holds no lock and no state, only the file system is between them.
    weights = [torch.randn(6, 5, generator=generator) for _ in range(8)]

    def fill(order):
        for i in order:
            assert_same(cached_factorize(weights[i]), factorize(weights[i]))

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    orders = [range(8), range(7, -1, -1), [3, 1, 4, 0, 5, 2, 6, 7], range(8)] * 5
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(fill, orders))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 8
