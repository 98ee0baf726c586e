"""The frozen part of an encoder, put aside and given back."""

import pytest
import torch
from torch import nn

from samparser.features.offload import EncoderAside
from samparser.features.store import DamagedFeaturesError
from samparser.sam import family_of


def upstream(model):
    return family_of(model).upstream(model)


@torch.no_grad()
def test_what_is_put_aside_is_gone_and_comes_back_as_it_was(tiny_sam, tmp_path, generator):
    pixels = torch.randn(1, 3, 64, 64, generator=generator)
    before, names = tiny_sam.get_image_embeddings(pixels), list(tiny_sam.state_dict())
    parts = upstream(tiny_sam)
    aside = EncoderAside(tiny_sam, parts, tmp_path / "weights.safetensors")
    assert not any(name.startswith(tuple(parts)) for name in tiny_sam.state_dict())
    assert sum(parameter.numel() for parameter in parts["vision_encoder.layers"].parameters()) == 0
    with pytest.raises(RuntimeError, match="put away while it works from cached features"):
        tiny_sam.get_image_embeddings(pixels)
    aside.restore()
    assert upstream(tiny_sam) == parts
    assert list(tiny_sam.state_dict()) == names
    assert torch.equal(tiny_sam.get_image_embeddings(pixels), before)


@torch.no_grad()
def test_buffers_come_back_too(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    model[0].running_mean.fill_(3)
    model[0].num_batches_tracked.fill_(7)
    aside = EncoderAside(model, {"0": model[0]}, tmp_path / "weights.safetensors")
    aside.restore()
    assert model[0].running_mean.tolist() == [3, 3]
    assert model[0].num_batches_tracked == 7


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
    aside = EncoderAside(tiny_sam, upstream(tiny_sam), file)
    damage(file)
    with pytest.raises(DamagedFeaturesError, match=r"weights\.safetensors .*load the base model again.*--resume"):
        aside.restore()
