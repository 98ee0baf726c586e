import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from samparser.sam import predict, segmentation_loss
from samparser.sam.data import Instance, PromptedDataset, PromptSettings, Sample, collate
from samparser.sam.feature_keys import image_key
from samparser.sam.feature_store import DamagedFeaturesError, FeatureStore, MissingFeaturesError
from samparser.sam.features import FeatureCache
from samparser.sam.flips import Flipped, RandomlyFlipped, flip_sample
from samparser.sam.upscaling import upscaling_by_products
from tests.conftest import make_tiny_sam

SHAPE = (8, 8, 24)


def make_samples(number: int = 3, seed: int = 0) -> list[Sample]:
    """Images of noise with a rectangle each, of unequal sizes."""
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(number):
        height, width = 40 + 4 * index, 56
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), dtype=bool)
        mask[8:24, 10 + index : 30] = True
        image[mask] //= 3
        samples.append(Sample(f"{index}.png", image, (Instance.from_mask(mask, 1, "1"),)))
    return samples


def train_neck(model):
    """Freezes all but the neck and the decoder."""
    model.requires_grad_(False)
    model.vision_encoder.neck.requires_grad_(True)
    model.mask_decoder.requires_grad_(True)
    return model.train()


def train_decoder(model):
    model.requires_grad_(False)
    model.mask_decoder.requires_grad_(True)
    return model.train()


def losses_of_training(model, dataset, epochs: int = 2) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            batch = collate([dataset[index]])
            output = model(pixel_values=batch["pixel_values"], input_boxes=batch["input_boxes"], multimask_output=False)
            logits = torch.nn.functional.interpolate(output.pred_masks[:, :, 0], batch["masks"].shape[-2:])
            valid = (batch["instance_valid"], batch["pixel_valid"])
            loss = segmentation_loss(logits, batch["masks"], *valid, lambda_focal=0.5).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("trains", [train_neck, train_decoder], ids=["neck and decoder", "decoder"])
def test_float32_features_give_the_losses_of_training_from_images(trains, tmp_path, tiny_processor):
    samples, prompts = make_samples(), PromptSettings(jitter_max=3)
    uncached = trains(make_tiny_sam())
    # As training from images does it. Adam takes whole steps even where gradients are nothing but rounding.
    with upscaling_by_products(uncached):
        expected = losses_of_training(uncached, PromptedDataset(samples, tiny_processor, prompts))

    model = trains(make_tiny_sam())
    cache = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32)
    assert cache.fill(samples, progress=False) == 3
    with cache.feeding() as processor:
        losses = losses_of_training(model, PromptedDataset(samples, processor, prompts))

    assert losses == pytest.approx(expected, abs=1e-5)
    assert len(set(losses)) == 6
    assert cache.form == ("tokens" if trains is train_neck else "embedding")
    ours, theirs = model.state_dict(), uncached.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4, msg=name)


def test_float16_features_keep_the_losses_to_three_digits(tmp_path, tiny_processor):
    samples, prompts = make_samples(), PromptSettings(jitter_max=3)
    expected = losses_of_training(train_neck(make_tiny_sam()), PromptedDataset(samples, tiny_processor, prompts))
    model = train_neck(make_tiny_sam())
    cache = FeatureCache(tmp_path, model, tiny_processor)
    cache.fill(samples, progress=False)
    with cache.feeding() as processor:
        losses = losses_of_training(model, PromptedDataset(samples, processor, prompts))
    assert cache.store.dtype == torch.float16
    assert losses == pytest.approx(expected, rel=1e-3)


def test_features_are_what_enters_the_neck(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    cache = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32)
    stored = cache.features(sample.image)
    assert stored.shape == SHAPE
    encoder = model.vision_encoder
    with torch.no_grad():
        hidden = encoder.patch_embed(tiny_processor(sample.image, return_tensors="pt")["pixel_values"])
        hidden = hidden + encoder.pos_embed
        for layer in encoder.layers:
            hidden = layer(hidden)
    torch.testing.assert_close(stored, hidden[0], rtol=0, atol=0)


def test_a_projection_is_applied_before_rounding(tmp_path, tiny_processor, generator):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    projection = torch.randn(5, 24, generator=generator)
    tokens = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32).features(sample.image)
    cache = FeatureCache(tmp_path, model, tiny_processor, projection=projection)
    stored = cache.features(sample.image)
    assert (cache.form, stored.shape) == ("projection", (8, 8, 5))
    torch.testing.assert_close(stored, (tokens @ projection.T).half(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"\(rank, 24\).*got \(5, 23\)"):
        FeatureCache(tmp_path, model, tiny_processor, projection=projection[:, 1:])


def test_predictions_from_features_are_those_from_the_image(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    expected = predict(model, tiny_processor, sample.image, boxes=sample.boxes)
    cache = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32)
    cache.fill([sample], progress=False)
    with cache.feeding() as processor:
        masks = predict(model, processor, sample.image, boxes=sample.boxes)
    np.testing.assert_array_equal(masks, expected)
    assert 0 < expected.mean() < 1


def test_the_frozen_encoder_leaves_memory_and_comes_back_bit_for_bit(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    cache = FeatureCache(tmp_path, model, tiny_processor)
    cache.fill([sample], progress=False)
    with cache.feeding():
        kept = {name for name, _ in model.named_parameters() if name.startswith("vision_encoder.")}
        assert {name.split(".")[1] for name in kept} == {"neck"}
        upstream = [p for name, p in parameters.items() if name.startswith("vision_encoder") and ".neck." not in name]
        assert sum(p.untyped_storage().nbytes() for p in upstream) == 0
        with pytest.raises(ValueError, match=r"put away.*\(batch, 8, 8, 24\).*got \(1, 3, 64, 64\)"):
            model(pixel_values=torch.zeros(1, 3, 64, 64), input_boxes=torch.tensor([[[0.0, 0, 9, 9]]]))
        with pytest.raises(RuntimeError, match="put away"):
            cache.encode(sample.image)
        with pytest.raises(RuntimeError, match="already"), cache.feeding():
            pass
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


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
        return file.metadata(), file.get_tensor("features").flatten().tolist()


def test_another_model_another_preprocessing_and_a_changed_image_find_nothing(tmp_path, tiny_processor):
    model = train_neck(make_tiny_sam())
    (sample,) = make_samples(1)
    cache = FeatureCache(tmp_path, model, tiny_processor)
    cache.fill([sample], progress=False)
    assert cache.processor(sample.image)["pixel_values"].shape == (1, *SHAPE)

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
    save_file({"features": load_file(path)["features"][:4].clone()}, path, metadata=metadata)


@pytest.mark.parametrize("damage", [cut_off, emptied, altered, reshaped])
def test_a_damaged_entry_is_found_and_computed_anew(damage, tmp_path, tiny_processor):
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    (sample,) = make_samples(1)
    cache.fill([sample], progress=False)
    (path,) = cache.store.folder.glob("??/*.safetensors")
    whole = contents(path)
    damage(path)
    if damage is not altered:
        with pytest.raises(DamagedFeaturesError, match="computed anew"):
            cache.processor(sample.image)
    with pytest.warns(UserWarning, match="computed anew"):
        assert cache.fill([sample], progress=False) == 1
    assert contents(path) == whole
    damage(path)
    with pytest.warns(UserWarning, match="computed anew"):
        cache.features(sample.image)
    assert contents(path) == whole


def test_values_beyond_float16_keep_float32(tmp_path):
    store = FeatureStore(tmp_path, "print", (2,), torch.float16)
    assert store.write("aa", torch.tensor([1.0, 65504.0])).dtype == torch.float16
    large = torch.tensor([1.00001, 7e4])
    assert store.write("ab", large).dtype == torch.float32
    torch.testing.assert_close(store.read("ab"), large, rtol=0, atol=0)
    mixed = torch.stack([store.read("aa"), store.read("ab")])
    assert mixed.dtype == torch.float32
    with pytest.raises(ValueError, match="not finite"):
        store.write("ac", torch.tensor([1.0, float("nan")]))
    assert store.size()[0] == 2


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


def test_training_upstream_is_refused_with_the_reason(tmp_path, tiny_processor):
    lora = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["qkv"], r=2))
    with pytest.raises(ValueError, match=r"trains 4 parts.*layers\.0\.attn\.qkv\.lora_A"):
        FeatureCache(tmp_path, lora, tiny_processor)
    lora.requires_grad_(False)
    with pytest.raises(ValueError, match=r"has adapters on .* parts.*layers\.0\.attn\.qkv"):
        FeatureCache(tmp_path, lora, tiny_processor)
    with pytest.raises(TypeError, match="Linear"):
        FeatureCache(tmp_path, torch.nn.Linear(2, 2), tiny_processor)


def test_worker_processes_read_features(tmp_path, tiny_processor):
    samples = make_samples(4)
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    cache.fill(samples, progress=False)
    dataset = PromptedDataset(samples, cache.processor, PromptSettings(jitter_max=3))
    loader = torch.utils.data.DataLoader(
        dataset, collate_fn=collate, num_workers=1, batch_size=2, multiprocessing_context="fork"
    )
    batches = [batch["pixel_values"] for batch in loader]
    expected = torch.stack([cache.store.read(image_key(sample.image)) for sample in samples])
    torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=0)


def test_the_processor_can_be_sent_to_a_process(tmp_path, tiny_processor):
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    (sample,) = make_samples(1)
    expected = cache.features(sample.image)
    processor = pickle.loads(pickle.dumps(cache.processor))
    torch.testing.assert_close(processor(sample.image)["pixel_values"][0], expected, rtol=0, atol=0)
    assert processor.size == tiny_processor.image_processor.size
    assert len(pickle.dumps(cache.store)) < 1000


def test_a_flip_mirrors_image_masks_boxes_and_void():
    (sample,) = make_samples(1)
    void = np.zeros(sample.size, dtype=bool)
    void[0, :5] = True
    sample = Sample(sample.name, sample.image, sample.instances, void=void)
    flipped = flip_sample(sample)
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(flipped.masks, sample.masks[:, :, ::-1])
    np.testing.assert_array_equal(flipped.void, void[:, ::-1])
    again = flip_sample(flipped)
    np.testing.assert_array_equal(again.image, sample.image)
    assert again.instances[0].box == sample.instances[0].box
    assert flipped.instances[0].box == Instance.from_mask(flipped.masks[0], 1, "1").box


def test_random_flips_depend_on_seed_epoch_and_index_only(tmp_path, tiny_processor):
    samples = make_samples(20)

    def flips(seed: int, epoch: int) -> list[bool]:
        data = RandomlyFlipped(samples, seed)
        data.set_epoch(epoch)
        return [not np.array_equal(data[i].image, samples[i].image) for i in range(len(data))]

    assert flips(0, 0) == flips(0, 0)
    assert len({tuple(flips(seed, epoch)) for seed in range(2) for epoch in range(3)}) == 6
    assert 3 < sum(flips(0, 1)) < 17
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    cache.fill(torch.utils.data.ConcatDataset([samples, Flipped(samples)]), progress=False)
    data = RandomlyFlipped(samples)
    for epoch in range(3):
        data.set_epoch(epoch)
        for index in range(len(data)):
            cache.processor(data[index].image)
