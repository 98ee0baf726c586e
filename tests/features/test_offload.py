"""The frozen part of an encoder, put aside and given back."""

import pytest
import torch

from samparser.features.offload import EncoderAside, FeatureInput
from samparser.features.store import DamagedFeaturesError


def test_features_of_one_shape_pass_in_the_encoders_dtype():
    layer = FeatureInput((2, 3), torch.float32)
    assert layer(torch.ones(4, 2, 3, dtype=torch.float16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"shape \(batch, 2, 3\); it got \(4, 3, 2\)"):
        layer(torch.ones(4, 3, 2))


@pytest.mark.parametrize("after_neck", [False, True])
@torch.no_grad()
def test_features_in_place_of_an_image_give_its_embedding(tiny_sam, tmp_path, after_neck, generator):
    encoder = tiny_sam.vision_encoder
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    seen = []
    handle = encoder.neck.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    embedding = encoder(pixels).last_hidden_state
    handle.remove()
    features = embedding if after_neck else seen[0]
    aside = EncoderAside(encoder, tuple(features.shape[1:]), tmp_path / "weights.safetensors", after_neck=after_neck)
    assert torch.equal(encoder(features).last_hidden_state, embedding)
    aside.restore()
    assert torch.equal(encoder(pixels).last_hidden_state, embedding)


def removed(file):
    file.unlink()


def altered(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [removed, altered, cut_off])
def test_weights_that_went_bad_while_they_were_away_are_named(tiny_sam, tmp_path, damage):
    file = tmp_path / "weights.safetensors"
    aside = EncoderAside(tiny_sam.vision_encoder, (8, 8, 24), file, after_neck=False)
    damage(file)
    with pytest.raises(DamagedFeaturesError, match=r"weights\.safetensors .*load the base model again.*--resume"):
        aside.restore()
