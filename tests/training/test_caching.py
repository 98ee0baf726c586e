from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prediction import predict
from samparser.training import TrainSettings

from ..conftest import make_tiny_sam
from .conftest import adapter_tensors


def rows(result) -> list[dict]:
    return list(result.folder.rows())


@pytest.mark.parametrize("projected", [False, True], ids=["tokens", "projection"])
def test_a_run_from_float32_features_ends_where_one_from_images_does(projected, run_tiny, tmp_path):
    uncached, _ = run_tiny("uncached", with_eval=True, num_train_epochs=2)
    cache = {"cache": str(tmp_path / "features"), "cache_dtype": "fp32", "cache_projected": projected}
    cached, model = run_tiny("cached", with_eval=True, num_train_epochs=2, **cache)
    # 6 images to train on and 6 to score.
    assert len(list((tmp_path / "features").glob("*/??/*.safetensors"))) == 12
    ours, theirs = rows(cached), rows(uncached)
    assert len(ours) == len(theirs) > 12
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for name in our.keys() & {"loss", "ce", "dice", "eval_miou", "eval_f1"}:
            assert our[name] == pytest.approx(their[name], abs=1e-5), name
    for name, tensor in adapter_tensors(cached).items():
        torch.testing.assert_close(tensor, adapter_tensors(uncached)[name], rtol=0, atol=2e-4, msg=name)
    assert cached.scores.miou == pytest.approx(uncached.scores.miou, abs=1e-5)
    # The model is whole again and takes images.
    assert len(model.get_base_model().vision_encoder.layers) == 2
    assert not model.get_base_model().vision_encoder.neck.conv1.takes_projection


def test_several_cached_images_a_step_train_as_several_images_do(run_tiny, toy_sets, tmp_path, monkeypatch):
    # Unequal numbers of instances: every other image keeps one of its three.
    original = type(toy_sets[0]).__getitem__

    def fewer(self, index):
        sample = original(self, index)
        return replace(sample, instances=sample.instances[: 1 + 2 * (index % 2)])

    monkeypatch.setattr(type(toy_sets[0]), "__getitem__", fewer)
    several = {"per_device_train_batch_size": 3, "num_train_epochs": 2}
    uncached, _ = run_tiny("uncached", **several)
    cached, _ = run_tiny("cached", **several, cache=str(tmp_path / "features"), cache_dtype="fp32")
    assert cached.steps == uncached.steps == 4
    losses = [[row["loss"] for row in rows(result) if "loss" in row] for result in (uncached, cached)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for name, tensor in adapter_tensors(cached).items():
        torch.testing.assert_close(tensor, adapter_tensors(uncached)[name], rtol=0, atol=2e-4, msg=name)


def test_a_second_run_encodes_nothing(run_tiny, tmp_path, monkeypatch):
    from samparser.features.cache import FeatureCache

    cache = str(tmp_path / "features")
    first, _ = run_tiny("first", cache=cache)
    monkeypatch.setattr(FeatureCache, "encode_pixels", None)
    second, _ = run_tiny("second", cache=cache)
    for name, tensor in adapter_tensors(first).items():
        assert torch.equal(tensor, adapter_tensors(second)[name])


def test_shards_that_workers_fill_train_as_files_do(run_tiny, tmp_path):
    how = {"cache_dtype": "fp32", "num_train_epochs": 2}
    files, _ = run_tiny("files", cache=str(tmp_path / "files"), **how)
    more = {"cache_shards": 4, "dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork"}
    shards, _ = run_tiny("shards", cache=str(tmp_path / "shards"), **how, **more)
    assert len(list((tmp_path / "shards").glob("*/shards/*.safetensors"))) == 2
    assert not list((tmp_path / "shards").glob("*/??/*.safetensors"))
    for name, tensor in adapter_tensors(files).items():
        assert torch.equal(tensor, adapter_tensors(shards)[name]), name


@pytest.mark.parametrize(
    "how", [{"cache_dtype": "int8"}, {"cache_dtype": "int8", "cache_projected": True}, {"cache_autocast": "bf16"}]
)
def test_coarser_features_keep_the_scores(how, run_tiny, tmp_path):
    exact, _ = run_tiny("exact", with_eval=True)
    rounded, _ = run_tiny("rounded", with_eval=True, cache=str(tmp_path / "features"), **how)
    assert rounded.scores.miou == pytest.approx(exact.scores.miou, abs=0.02)
    losses = [[row["loss"] for row in rows(result) if "loss" in row] for result in (exact, rounded)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_flips_are_trained_on_and_cached_as_further_entries(run_tiny, tmp_path):
    plain, _ = run_tiny("plain")
    uncached, _ = run_tiny("uncached", flip=True, num_train_epochs=2)
    cached, _ = run_tiny("cached", flip=True, num_train_epochs=2, cache=str(tmp_path / "features"), cache_dtype="fp32")
    assert len(list((tmp_path / "features").glob("*/??/*.safetensors"))) == 12
    losses = [[row["loss"] for row in rows(result) if "loss" in row] for result in (uncached, cached, plain)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] != pytest.approx(losses[0][: len(losses[2])], abs=1e-4)


def test_a_plain_model_resumes_from_cached_embeddings(run_tiny, tmp_path):
    def decoder_only():
        model = make_tiny_sam().requires_grad_(False)
        model.mask_decoder.requires_grad_(True)
        return model

    cache = {"cache": str(tmp_path / "features"), "cache_dtype": "fp32"}
    _, whole = run_tiny("whole", model=decoder_only(), num_train_epochs=2, **cache)
    _, uncached = run_tiny("uncached", model=decoder_only(), num_train_epochs=2)
    stopped = decoder_only()
    count = 0

    def stop(*_):
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt

    stopped.mask_decoder.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        run_tiny("stopped", model=stopped, num_train_epochs=2, **cache)
    assert len(stopped.vision_encoder.layers) == 2
    _, resumed = run_tiny("stopped", model=decoder_only(), num_train_epochs=2, resume=True, **cache)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
        torch.testing.assert_close(uncached.state_dict()[name], tensor, rtol=0, atol=2e-4, msg=name)


def test_float16_features_keep_the_scores(run_tiny, tmp_path, toy_sets, tiny_processor):
    exact, first = run_tiny("exact", with_eval=True)
    rounded, second = run_tiny("rounded", with_eval=True, cache=str(tmp_path / "features"))
    assert rounded.scores.miou == pytest.approx(exact.scores.miou, abs=0.01)
    sample = toy_sets[1][0]
    ours, theirs = (predict(model, tiny_processor, sample.image, boxes=sample.boxes) for model in (second, first))
    assert np.mean(ours != theirs) < 0.01


def test_what_cannot_be_cached_is_refused_before_anything_is_written(run_tiny, tmp_path):
    cache = str(tmp_path / "features")
    lora = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["qkv"], r=2))
    with pytest.raises(ValueError, match=r"trains 4 parts of the image encoder.*lora_A"):
        run_tiny(model=lora, cache=cache)
    decoder = make_tiny_sam().requires_grad_(False)
    decoder.mask_decoder.requires_grad_(True)
    with pytest.raises(ValueError, match="conv1 of this model is a Conv2d without coefficients"):
        run_tiny(model=decoder, cache=cache, cache_projected=True)
    bases = get_peft_model(make_tiny_sam(), SVDCoefficientConfig(target_modules=["neck"], trainable="bases"))
    with pytest.raises(ValueError, match="bases of its own"):
        run_tiny(model=bases, cache=cache, cache_projected=True)
    with pytest.raises(ValueError, match=r"The limit is 1e-06 GB"):
        run_tiny(cache=cache, cache_limit_gb=1e-6)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cache_projected": True}, "cache_projected cannot be honoured; give the folder"),
        ({"cache_shards": 4, "cache_batch": 2}, "cache_batch, cache_shards cannot be honoured; give the folder"),
        ({"cache": "x", "cache_limit_gb": -1}, "cache_limit_gb is -1"),
        ({"cache": "x", "cache_batch": 0}, "cache_batch is 0; it must be at least 1"),
        ({"cache": "x", "cache_shards": 0}, "cache_shards is 0; it must be at least 1"),
        ({"cache": "x", "cache_dtype": "bf16"}, "cache_dtype is 'bf16'; known are fp16, fp32, int8"),
        ({"cache": "x", "cache_autocast": "int8"}, "cache_autocast is 'int8'; known are None, bf16, fp16"),
    ],
)
def test_settings_of_the_cache_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**fields)
