"""Training and predicting from cached features, beside the same from images."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.features.cache import FeatureCache
from samparser.prediction import predict
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam.lean import lean_decoder
from samparser.scoring import segmentation_loss
from tests.conftest import make_tiny_sam
from tests.features.feature_samples import SHAPE, make_samples, train_decoder, train_neck


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
    with lean_decoder(uncached):
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
    (stored,) = cache.features(sample.image)
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
    (tokens,) = FeatureCache(tmp_path, model, tiny_processor, dtype=torch.float32).features(sample.image)
    cache = FeatureCache(tmp_path, model, tiny_processor, projection=projection)
    (stored,) = cache.features(sample.image)
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


def test_training_upstream_is_refused_with_the_reason(tmp_path, tiny_processor):
    lora = get_peft_model(make_tiny_sam(), LoraConfig(target_modules=["qkv"], r=2))
    with pytest.raises(ValueError, match=r"trains 4 parts.*layers\.0\.attn\.qkv\.lora_A"):
        FeatureCache(tmp_path, lora, tiny_processor)
    lora.requires_grad_(False)
    with pytest.raises(ValueError, match=r"has adapters on .* parts.*layers\.0\.attn\.qkv"):
        FeatureCache(tmp_path, lora, tiny_processor)
    with pytest.raises(TypeError, match="Linear"):
        FeatureCache(tmp_path, torch.nn.Linear(2, 2), tiny_processor)
