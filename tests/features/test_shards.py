"""Entries of many images in one file: found, read alone, and lost alone."""

import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from samparser.features.store import DamagedFeaturesError, FeatureStore, MissingFeaturesError

KEYS = [f"{number:064x}" for number in range(5)]


def filled(folder, dtype=torch.float32, shapes=((2, 3), (4,)), groups=(KEYS[:3], KEYS[3:])):
    """A store with two shards, and the features of each key."""
    store = FeatureStore(folder, "print", shapes, dtype)
    rng = torch.Generator().manual_seed(0)
    features = {key: tuple(torch.randn(shape, generator=rng) for shape in shapes) for key in KEYS}
    for group in groups:
        store.shards.write({key: store.stored(features[key]) for key in group})
    return store, features


def shards_of(store):
    return sorted(store.shards.folder.glob("*.safetensors"))


def same(ours, theirs):
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_an_entry_is_what_a_file_of_its_own_would_hold(dtype, tmp_path):
    store, features = filled(tmp_path / "shards", dtype)
    alone = FeatureStore(tmp_path / "files", "print", store.shapes, dtype)
    assert len(shards_of(store)) == 2
    assert store.size() == (5, sum(path.stat().st_size for path in shards_of(store)))
    fresh = pickle.loads(pickle.dumps(store))
    for key in KEYS:
        expected = alone.write(key, features[key])
        assert same(store.read(key), expected)
        assert same(fresh.read(key), alone.read(key))
    assert len(pickle.dumps(store)) < 1000


def test_values_beyond_float16_keep_float32_in_a_shard_too(tmp_path):
    store = FeatureStore(tmp_path, "print", ((2,),), torch.float16)
    large, small = (torch.tensor([1.00001, 7e4]),), (torch.tensor([1.0, 2.0]),)
    store.shards.write({KEYS[0]: store.stored(large), KEYS[1]: store.stored(small)})
    assert same(store.read(KEYS[0]), large)
    assert same(store.read(KEYS[1]), (small[0].half(),))


def test_shards_of_other_processes_are_found_when_something_is_missing(tmp_path):
    store, features = filled(tmp_path, groups=(KEYS[:2],))
    with pytest.raises(MissingFeaturesError, match=KEYS[2]):
        store.read(KEYS[2])
    other = FeatureStore(tmp_path, "print", store.shapes, store.dtype)
    other.shards.write({KEYS[2]: other.stored(features[KEYS[2]])})
    other.write(KEYS[3], features[KEYS[3]])
    assert same(store.read(KEYS[2]), features[KEYS[2]])
    assert same(store.read(KEYS[3]), features[KEYS[3]])


def test_an_altered_value_costs_its_entry_and_the_newest_shard_counts(tmp_path):
    store, features = filled(tmp_path)
    first = shards_of(store)[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    damaged = [key for key in KEYS if not reads(store, key)]
    assert len(damaged) == 1
    (key,) = damaged
    store.shards.write({key: store.stored(features[key])})
    for one in (store, FeatureStore(tmp_path, "print", store.shapes, store.dtype)):
        assert all(same(one.read(key), features[key]) for key in KEYS)


def test_a_file_of_its_own_stands_in_for_a_damaged_entry(tmp_path):
    store, features = filled(tmp_path, groups=(KEYS[:1],))
    (path,) = shards_of(store)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not reads(store, KEYS[0])
    store.write(KEYS[0], features[KEYS[0]])
    assert same(store.read(KEYS[0]), features[KEYS[0]])


def reads(store, key):
    try:
        store.read(key)
    except DamagedFeaturesError as error:
        assert "what is damaged is computed anew" in str(error)  # noqa: PT017
        return False
    return True


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


def no_header(path):
    path.write_bytes((10**12).to_bytes(8, "little") + b"{}")


def of_another_type(path):
    path.write_bytes((4).to_bytes(8, "little") + json.dumps([12]).encode())


def of_another_model(path):
    save_file(load_file(path), path, metadata={"fingerprint": "other", KEYS[0]: "00"})


@pytest.mark.parametrize("damage", [cut_off, emptied, no_header, of_another_type, of_another_model])
def test_a_shard_that_is_damaged_costs_itself_alone(damage, tmp_path):
    _, features = filled(tmp_path)
    store = FeatureStore(tmp_path, "print", ((2, 3), (4,)), torch.float32)
    broken = shards_of(store)[0]
    damage(broken)
    with pytest.warns(UserWarning, match=rf"{broken.name} is damaged and passed over"):
        assert same(store.read(KEYS[3]), features[KEYS[3]])
    assert same(store.read(KEYS[4]), features[KEYS[4]])
    for key in KEYS[:3]:
        with pytest.raises(MissingFeaturesError):
            store.read(key)
    store.remove_abandoned()
    assert broken.exists() == (damage is of_another_model)
    assert len(shards_of(store)) == (2 if damage is of_another_model else 1)


def test_a_shard_cut_off_or_deleted_while_it_is_used_is_named(tmp_path):
    store, features = filled(tmp_path)
    first, second = shards_of(store)
    assert same(store.read(KEYS[0]), features[KEYS[0]])
    first.write_bytes(first.read_bytes()[:-40])
    assert not all(reads(store, key) for key in KEYS[:3])
    second.unlink()
    with pytest.raises(MissingFeaturesError):
        store.read(KEYS[3])


def test_threads_may_write_and_look_for_shards_at_the_same_time(tmp_path):
    store = FeatureStore(tmp_path, "print", ((1,),), torch.float32)
    keys = [f"{number:064x}" for number in range(200)]

    def write(number):
        store.shards.write({keys[number]: store.stored((torch.full((1,), float(number)),))})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert [store.read(key)[0].item() for key in keys] == list(range(200))


def test_where_entries_lie_takes_some_hundred_bytes_each(tmp_path):
    store = FeatureStore(tmp_path, "print", ((1,),), torch.float16)
    keys = [f"{number:064x}" for number in range(2000)]
    store.shards.write({key: store.stored((torch.ones(1),)) for key in keys})
    fresh = FeatureStore(tmp_path, "print", ((1,),), torch.float16)
    start = time.perf_counter()
    assert all(torch.equal(fresh.read(key)[0], torch.ones(1).half()) for key in keys)
    assert time.perf_counter() - start < 20
    held = sum(key.__sizeof__() + value.__sizeof__() for key, value in fresh.shards._where.items())
    assert (held + fresh.shards._where.__sizeof__()) / 2000 < 320
