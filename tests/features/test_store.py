"""Filling, finding, refusing and mending the entries of a feature cache."""

import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from samparser.features.cache import FeatureCache
from samparser.features.keys import image_key
from samparser.features.store import DamagedFeaturesError, FeatureStore, MissingFeaturesError
from samparser.prompts import PromptedDataset, PromptSettings, collate
from tests.conftest import make_tiny_sam
from tests.features.feature_samples import SHAPE, make_samples, train_decoder, train_neck


def test_filling_goes_on_where_it_was_stopped(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    samples = make_samples(4)
    cache = FeatureCache(tmp_path, model, tiny_processor)

    class Stopped(list):
        def __getitem__(self, index):
            if index == 2:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        cache.fill(Stopped(samples), progress=False)
    assert cache.store.size()[0] == 2
    again = FeatureCache(tmp_path, model, tiny_processor)
    assert again.fill(samples, progress=False) == 2
    assert again.fill(samples, progress=False) == 0


def test_processes_share_the_images_out(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    samples = make_samples(5)
    cache = FeatureCache(tmp_path, model, tiny_processor)
    assert cache.fill(samples, process=(1, 2), progress=False) == 2
    assert cache.fill(samples, process=(0, 2), progress=False) == 3
    assert cache.store.size()[0] == 5


def _write_all(folder: Path, processor) -> None:
    model = train_neck(make_tiny_sam())
    cache = FeatureCache(folder, model, processor)
    for _ in range(5):
        for sample in make_samples(4):
            cache.store.write(image_key(sample.image), cache.encode(sample.image))


def test_two_processes_fill_one_folder_at_the_same_time(tmp_path, tiny_processor):
    """Both write every entry over and over; each file must be whole, and hold what one process writes."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_write_all, args=(tmp_path / "both", tiny_processor)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0, 0]
    _write_all(tmp_path / "one", tiny_processor)
    files = sorted(path.relative_to(tmp_path / "both") for path in (tmp_path / "both").rglob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        assert contents(tmp_path / "both" / file) == contents(tmp_path / "one" / file)
    assert not list(tmp_path.rglob("*.tmp*"))


def contents(path: Path) -> tuple[dict[str, str], list[float]]:
    """Metadata and values of an entry; the order of the metadata in the file is not fixed."""
    with safe_open(path, "pt") as file:
        return file.metadata(), file.get_tensor("features0").flatten().tolist()


def test_another_model_another_preprocessing_and_a_changed_image_find_nothing(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    cache = FeatureCache(tmp_path, model, tiny_processor)
    cache.fill([sample], progress=False)
    assert [tensor.shape for tensor in cache.processor(sample.image)["pixel_values"]] == [(1, *SHAPE)]

    changed = sample.image.copy()
    changed[0, 0, 0] ^= 1
    with pytest.raises(MissingFeaturesError, match="no image has changed"):
        cache.processor(changed)

    other = train_neck(make_tiny_sam())
    with torch.no_grad():
        other.vision_encoder.layers[1].mlp.lin1.bias[3] += 1e-6
    with pytest.raises(MissingFeaturesError):
        FeatureCache(tmp_path, other, tiny_processor).processor(sample.image)

    processor = type(tiny_processor)(type(tiny_processor.image_processor)(**tiny_processor.image_processor.to_dict()))
    same = FeatureCache(tmp_path, model, processor)
    same.processor(sample.image)
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(MissingFeaturesError):
        FeatureCache(tmp_path, model, processor).processor(sample.image)

    # What comes after the features does not count.
    with torch.no_grad():
        model.vision_encoder.neck.conv2.weight += 1
        model.mask_decoder.iou_token.weight += 1
    FeatureCache(tmp_path, model, tiny_processor).processor(sample.image)


def test_an_embedding_depends_on_the_neck(tmp_path, tiny_processor):
    model = train_decoder(make_tiny_sam())
    before = FeatureCache(tmp_path, model, tiny_processor)
    with torch.no_grad():
        model.vision_encoder.neck.conv2.weight += 1
    after = FeatureCache(tmp_path, model, tiny_processor)
    assert before.form == after.form == "embedding"
    assert before.store.fingerprint != after.store.fingerprint


def test_an_entry_moved_from_another_cache_is_refused(tmp_path, tiny_processor, other_tiny_sam):
    (sample,) = make_samples(1)
    first = FeatureCache(tmp_path / "a", train_neck(make_tiny_sam()), tiny_processor)
    second = FeatureCache(tmp_path / "b", train_neck(other_tiny_sam), tiny_processor)
    first.fill([sample], progress=False)
    shutil.copytree(first.store.folder, second.store.folder)
    with pytest.raises(DamagedFeaturesError, match="another model or image"):
        second.processor(sample.image)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def reshaped(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({"features0": load_file(path)["features0"][:4].clone()}, path, metadata=metadata)


@pytest.mark.parametrize("damage", [cut_off, emptied, altered, reshaped])
def test_a_damaged_entry_is_found_and_computed_anew(damage, tmp_path, tiny_processor):
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    (sample,) = make_samples(1)
    cache.fill([sample], progress=False)
    (path,) = cache.store.folder.glob("??/*.safetensors")
    whole = contents(path)
    damage(path)
    with pytest.raises(DamagedFeaturesError, match=rf"{path.name}.* what is damaged is computed anew.*--resume"):
        cache.processor(sample.image)
    with pytest.warns(UserWarning, match="computed anew"):
        assert cache.fill([sample], progress=False) == 1
    assert contents(path) == whole
    damage(path)
    with pytest.warns(UserWarning, match="computed anew"):
        cache.features(sample.image)
    assert contents(path) == whole


def test_values_beyond_float16_keep_float32(tmp_path):
    store = FeatureStore(tmp_path, "print", ((2,),), torch.float16)
    assert store.write("aa", (torch.tensor([1.0, 65504.0]),))[0].dtype == torch.float16
    large = torch.tensor([1.00001, 7e4])
    assert store.write("ab", (large,))[0].dtype == torch.float32
    torch.testing.assert_close(store.read("ab")[0], large, rtol=0, atol=0)
    mixed = torch.stack([store.read("aa")[0], store.read("ab")[0]])
    assert mixed.dtype == torch.float32
    with pytest.raises(ValueError, match="not finite"):
        store.write("ac", (torch.tensor([1.0, float("nan")]),))
    assert store.size()[0] == 2


def test_an_entry_holds_several_tensors_each_in_its_own_width(tmp_path):
    store = FeatureStore(tmp_path, "print", ((2,), (3, 1)), torch.float16)
    assert store.entry_bytes == 2 * (2 + 3)
    features = torch.tensor([1.0, 7e4]), torch.tensor([[1.0], [2.0], [3.0]])
    store.write("aa", features)
    back = store.read("aa")
    assert [tensor.dtype for tensor in back] == [torch.float32, torch.float16]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(back, features, strict=True))
    with pytest.raises(ValueError, match=r"shapes \(\(2,\),\), the store's are \(\(2,\), \(3, 1\)\)"):
        store.write("ab", features[:1])
    # As another process wrote it, of a model with one tensor more or less.
    save_file({"features0": back[0]}, store.path("aa"), metadata={"fingerprint": "print", "image": "aa"})
    with pytest.raises(DamagedFeaturesError, match="cannot be read"):
        store.read("aa")


def test_the_disk_need_is_announced_and_limited(tmp_path, tiny_processor, capsys):
    model, samples = train_neck(make_tiny_sam()), make_samples(3)
    upstream = sum(
        tensor.numel() * 4 for name, tensor in model.vision_encoder.state_dict().items() if not name.startswith("neck.")
    )
    need = 3 * 2 * 8 * 8 * 24 + upstream
    with pytest.raises(ValueError, match=r"3 images.*The limit is .* GB. Raise it"):
        FeatureCache(tmp_path, model, tiny_processor, limit_gb=(need - 1) / 1e9).fill(samples)
    assert not list(tmp_path.rglob("*.safetensors"))
    FeatureCache(tmp_path, model, tiny_processor, limit_gb=need / 1e9).fill(samples)
    printed = capsys.readouterr().out
    assert "3 images of 0.0 MB" in printed
    assert "are free" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dtype": torch.bfloat16}, "not as torch.bfloat16"), ({"limit_gb": 0}, "got 0")],
    ids=["bfloat16", "no space"],
)
def test_what_is_not_possible_is_refused(arguments, message, tmp_path, tiny_sam, tiny_processor):
    with pytest.raises(ValueError, match=message):
        FeatureCache(tmp_path, train_neck(tiny_sam), tiny_processor, **arguments)


def test_a_damaged_copy_of_the_encoder_is_replaced(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    cache = FeatureCache(tmp_path, model, tiny_processor)
    for damage in (None, cut_off, emptied, altered):
        file = cache.store.folder / "encoder.safetensors"
        before = file.stat().st_mtime_ns if file.is_file() else None
        if damage is not None:
            damage(file)
        with cache.feeding():
            assert (file.stat().st_mtime_ns == before) is False
        with cache.feeding():
            pass
        for name, tensor in make_tiny_sam().state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), (damage, name)


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "error"),
    [(altered, DamagedFeaturesError), (cut_off, DamagedFeaturesError), (removed, MissingFeaturesError)],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_entry_that_goes_bad_while_it_is_used_ends_with_one_clear_message(
    damage, error, workers, tmp_path, tiny_processor
):
    samples = make_samples(2)
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    cache.fill(samples, progress=False)
    path = cache.store.path(image_key(samples[1].image))
    with cache.feeding() as processor:
        dataset = PromptedDataset(samples, processor, PromptSettings(jitter_max=3))
        loader = torch.utils.data.DataLoader(
            dataset, collate_fn=collate, num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        assert len(list(loader)) == 2
        damage(path)
        with pytest.raises(error, match=rf"^(.*/|No features of this image in .*){path.name}.*--resume") as caught:
            list(loader)
    assert "Traceback" not in str(caught.value)
    assert isinstance(caught.value, RuntimeError)


def test_a_full_disk_is_named_and_leaves_the_cache_whole(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path, "print", ((2,),), torch.float32)
    store.write("aa", (torch.ones(2),))

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("samparser.features.store.save_file", full)
    with pytest.raises(OSError, match=r"no space left .*ab\.safetensors"):
        store.write("ab", (torch.ones(2),))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["aa.safetensors"]
    assert torch.equal(store.read("aa")[0], torch.ones(2))
