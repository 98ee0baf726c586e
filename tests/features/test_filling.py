"""Filling a cache: by workers and in batches, in files and in shards, by several processes, killed and gone on with."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from samparser.features.cache import FeatureCache
from samparser.features.keys import image_key
from samparser.features.store import MissingFeaturesError
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam.lean import lean_decoder
from tests.conftest import make_tiny_sam
from tests.features.feature_samples import make_samples, train_decoder, train_neck

from ..sam.tiny import TINY, make_tiny


def cache_in(folder: Path, processor, dtype=torch.float32, **how) -> FeatureCache:
    return FeatureCache(folder, train_neck(make_tiny_sam()), processor, dtype=dtype, **how)


def entries_of(folder: Path) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Tensors of each image as they are on disk, once for each place where they are."""
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    for path in folder.glob("*/??/*.safetensors"):
        found.setdefault(path.stem, []).append(load_file(path))
    for path in folder.glob("*/shards/[!.]*.safetensors"):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            keys = file.metadata().keys() - {"fingerprint"}
        for key in keys:
            names = [name for name in tensors if name.startswith(key)]
            found.setdefault(key, []).append({name.removeprefix(f"{key}."): tensors[name] for name in names})
    return found


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize(("workers", "batch"), [(0, 1), (2, 1), (0, 3)])
def test_features_are_those_of_encoding_each_image_bit_for_bit(shards, workers, batch, tmp_path, tiny_processor):
    samples = make_samples(5)
    cache = cache_in(tmp_path, tiny_processor, shards=shards, batch=batch)
    state = torch.get_rng_state()
    how = {"workers": workers, "context": "fork" if workers else None, "progress": False}
    assert cache.fill([*samples, samples[1]], **how) == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert cache.fill(samples, **how) == 0
    for sample in samples:
        (stored,) = cache.processor(sample.image)["pixel_values"]
        (exact,) = cache.encode(sample.image)
        assert torch.equal(stored[0], exact)
    found = entries_of(tmp_path)
    assert {key: len(places) for key, places in found.items()} == {image_key(s.image): 1 for s in samples}
    # Six samples are one part of eight, or three parts of two.
    assert len(list(tmp_path.glob("*/shards/*.safetensors"))) == (0 if shards is None else 3)
    assert not (cache.store.folder / "claims").exists()


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("trains", [train_neck, train_decoder])
def test_logits_and_gradients_from_the_cache_equal_those_from_pixels_bit_for_bit(
    trains, shards, tmp_path, tiny_processor
):
    samples = make_samples(3)
    model = trains(make_tiny_sam())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def logits_and_gradients(processor):
        batch = collate([PromptedDataset(samples, processor, PromptSettings(jitter_max=3))[1]])
        output = model(pixel_values=batch["pixel_values"], input_boxes=batch["input_boxes"], multimask_output=False)
        logits = output.pred_masks
        return logits.detach(), torch.autograd.grad(logits.square().mean(), trained, allow_unused=True)

    with lean_decoder(model):
        expected, wanted = logits_and_gradients(tiny_processor)
    cache = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32, shards=shards)
    cache.fill(samples, progress=False)
    with cache.feeding() as fed:
        logits, gradients = logits_and_gradients(fed)
    assert torch.equal(logits, expected)
    assert sum(gradient is not None for gradient in gradients) > 20
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


@pytest.mark.parametrize("model_type", TINY)
def test_batches_change_last_bits_at_most(model_type, tmp_path):
    from samparser.sam import default_processor

    model = make_tiny(model_type).requires_grad_(False).eval()
    processor = default_processor(model)
    samples = make_samples(4)
    cache = FeatureCache(tmp_path, model, processor, dtype=torch.float32, batch=4)
    assert cache.fill(samples, progress=False) == 4
    for sample in samples:
        for ours, theirs in zip(cache.store.read(image_key(sample.image)), cache.encode(sample.image), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_what_is_computed_otherwise_is_never_taken_for_an_exact_entry(tmp_path, tiny_processor, capsys):
    samples = make_samples(4)
    exact = cache_in(tmp_path, tiny_processor)
    exact.fill(samples, progress=False)
    others = [
        cache_in(tmp_path, tiny_processor, autocast=torch.bfloat16),
        cache_in(tmp_path, tiny_processor, autocast=torch.float16),
        cache_in(tmp_path, tiny_processor, batch=2),
        cache_in(tmp_path, tiny_processor, torch.float16),
        cache_in(tmp_path, tiny_processor, torch.float16, autocast=torch.bfloat16),
        cache_in(tmp_path, tiny_processor, torch.int8),
    ]
    assert len({cache.store.folder for cache in (exact, *others)}) == 7
    for cache in others:
        with pytest.raises(MissingFeaturesError):
            cache.processor(samples[0].image)
    # What rounds more coarsely than a batch does, or says nothing of how an entry is computed, is one cache.
    halves = [cache_in(tmp_path, tiny_processor, torch.float16, **how) for how in ({"batch": 3}, {"shards": 2})]
    assert {cache.store.folder for cache in halves} == {others[3].store.folder}

    assert others[0].fill(samples) == 4
    computed = json.loads((others[0].store.folder / "about.json").read_text())["computed"]
    assert computed["autocast"] == "torch.bfloat16"
    assert len(computed["relative_errors"]) == 3
    assert all(1e-5 < error < 0.05 for error in computed["relative_errors"])
    said = f"{100 * max(computed['relative_errors']):.2g} % of their size"
    assert said in capsys.readouterr().out
    (stored,), (plain,) = (cache.store.read(image_key(samples[0].image)) for cache in (others[0], exact))
    measured = float((stored - plain).norm() / plain.norm())
    assert measured == pytest.approx(computed["relative_errors"][0])
    # Nothing is encoded, so nothing is measured, and what was stays.
    assert others[0].fill(samples, progress=False) == 0
    assert json.loads((others[0].store.folder / "about.json").read_text())["computed"] == computed
    assert exact.fill(samples, progress=False) == 0


def test_files_and_shards_are_one_cache(tmp_path, tiny_processor):
    samples = make_samples(5)
    assert cache_in(tmp_path, tiny_processor).fill(samples[:2], progress=False) == 2
    assert cache_in(tmp_path, tiny_processor, shards=3).fill(samples[:4], progress=False) == 2
    third = cache_in(tmp_path, tiny_processor)
    assert third.fill(samples, progress=False) == 1
    assert third.store.size()[0] == 5
    assert {len(places) for places in entries_of(tmp_path).values()} == {1}


class Slow(list):
    """Samples that say where a process is, and wait there."""

    def __init__(self, samples, seconds: float) -> None:
        super().__init__(samples)
        self.seconds = seconds

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return super().__getitem__(index)


SHARDS = (None, 4)


def _fill(folder: Path, processor, start, results, seconds: float) -> None:
    torch.set_num_threads(1)
    for shards in SHARDS:
        cache = cache_in(folder / str(shards), processor, shards=shards)
        start.wait()
        results.put((shards, cache.fill(Slow(make_samples(18), seconds), progress=False)))


def test_two_processes_on_one_folder_encode_each_image_once(tmp_path, tiny_processor):
    # Spawned: a fork in a process with threads of other tests can hang.
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.SimpleQueue()
    given = (tmp_path / "both", tiny_processor, start, results, 0.02)
    running = [context.Process(target=_fill, args=given) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=300)
    assert [process.exitcode for process in running] == [0, 0]
    encoded = [results.get() for _ in range(4)]
    for shards in SHARDS:
        counts = [count for which, count in encoded if which == shards]
        assert sum(counts) == 18
        assert min(counts) > 0
        alone = tmp_path / "one" / str(shards)
        cache_in(alone, tiny_processor, shards=shards).fill(make_samples(18), progress=False)
        both, one = entries_of(tmp_path / "both" / str(shards)), entries_of(alone)
        assert both.keys() == one.keys()
        for key, places in both.items():
            assert [len(places), len(one[key])] == [1, 1]
            assert all(torch.equal(places[0][name], tensor) for name, tensor in one[key][0].items())
    assert not list(tmp_path.rglob("*.tmp*"))


def _fill_slowly(folder: Path, processor) -> None:
    cache_in(folder, processor, shards=4).fill(Slow(make_samples(18), 0.1), progress=False)


def test_a_filling_process_that_is_killed_is_gone_on_with(tmp_path, tiny_processor):
    process = multiprocessing.get_context("spawn").Process(target=_fill_slowly, args=(tmp_path, tiny_processor))
    process.start()
    deadline = time.monotonic() + 300
    while len(entries_of(tmp_path)) < 5:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = len(entries_of(tmp_path))
    assert 5 <= there < 18
    assert list(tmp_path.glob("*/claims/*"))  # of the dead process, which hold nobody up
    cache = cache_in(tmp_path, tiny_processor, shards=4)
    assert cache.fill(make_samples(18), progress=False) == 18 - there
    found = entries_of(tmp_path)
    assert {len(places) for places in found.values()} == {1}
    for sample in make_samples(18):
        assert torch.equal(cache.processor(sample.image)["pixel_values"][0][0], cache.encode(sample.image)[0])
    assert not (cache.store.folder / "claims").exists()


@pytest.mark.parametrize("shards", [None, 4])
def test_what_was_encoded_before_an_interrupt_is_kept(shards, tmp_path, tiny_processor):
    class Stopped(list):
        def __getitem__(self, index):
            if index == 6:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    cache = cache_in(tmp_path, tiny_processor, shards=shards)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(Stopped(make_samples(9)), progress=False)
    assert len(entries_of(tmp_path)) == 6
    assert not (cache.store.folder / "claims").exists()
    assert cache.fill(make_samples(9), progress=False) == 3


def test_a_damaged_entry_of_a_shard_is_computed_anew_and_the_others_are_not(tmp_path, tiny_processor):
    samples = make_samples(6)
    cache_in(tmp_path, tiny_processor, shards=3).fill(samples, progress=False)
    first = sorted(tmp_path.glob("*/shards/*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    cache = cache_in(tmp_path, tiny_processor, shards=3)
    with pytest.warns(UserWarning, match="computed anew now"):
        assert cache.fill(samples, progress=False) == 1
    assert cache_in(tmp_path, tiny_processor, shards=3).fill(samples, progress=False) == 0
    first.write_bytes(data[:-1])
    with pytest.warns(UserWarning, match=rf"{first.name} is damaged"):
        assert cache_in(tmp_path, tiny_processor, shards=3).fill(samples, progress=False) == 2
    assert not first.exists()


@pytest.mark.parametrize("shards", [None, 2])
def test_a_full_disk_ends_filling_with_its_name(shards, tmp_path, tiny_processor, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    cache = cache_in(tmp_path, tiny_processor, shards=shards)
    monkeypatch.setattr(f"samparser.features.{'store' if shards is None else 'shards'}.save_file", full)
    with pytest.raises(OSError, match=r"no space left .*\.safetensors"):
        cache.fill(make_samples(5), progress=False)
    assert not list(cache.store.folder.rglob("*.safetensors"))
    assert not (cache.store.folder / "claims").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch": 0}, "batch must be at least 1 image; got 0"),
        ({"shards": 0}, "shards must be at least 1 image; got 0"),
        ({"autocast": torch.float32}, "got torch.float32"),
    ],
)
def test_what_is_not_possible_is_refused(how, message, tmp_path, tiny_processor):
    with pytest.raises(ValueError, match=message):
        cache_in(tmp_path, tiny_processor, **how)


def test_features_that_are_not_finite_are_not_stored(tmp_path, tiny_processor):
    cache = cache_in(tmp_path, tiny_processor)
    with torch.no_grad():
        cache._sam.vision_encoder.pos_embed[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        cache.fill(make_samples(3), progress=False)
    assert not entries_of(tmp_path)
