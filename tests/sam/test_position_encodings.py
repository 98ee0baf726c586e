"""Necks without the position encodings that nothing reads: the same maps, and in this thread alone."""

import threading

import pytest
import torch
from torch import nn

from samparser.sam import family_of
from samparser.sam.position_encodings import without_position_encodings
from tests.sam.tiny import make_tiny


@pytest.mark.parametrize("model_type", ["sam2", "edgetam", "sam3_tracker"])
def test_maps_stay_and_encodings_are_empty(model_type):
    model = make_tiny(model_type).requires_grad_(False)
    family, neck = family_of(model), model.vision_encoder.neck
    size = family.frame(model).size
    features = family._entering(family.encode(model, torch.randn(1, 3, size, size)))
    maps, encodings = neck(features)
    with without_position_encodings(neck):
        same, empty = neck(features)
    assert all(map(torch.equal, same, maps))
    assert all(encoding.numel() > 0 for encoding in encodings)
    assert all(encoding.numel() == 0 for encoding in empty)
    assert all(map(torch.equal, neck(features)[1], encodings))


def test_embedding_makes_no_encodings(monkeypatch):
    model = make_tiny("sam2").requires_grad_(False)
    family, made = family_of(model), []
    encoding = type(model.vision_encoder.neck.position_encoding)
    forward = encoding.forward
    monkeypatch.setattr(encoding, "forward", lambda *args: made.append(args) or forward(*args))
    features = family.encode(model, torch.randn(1, 3, 64, 64))
    embedded = family.embed(model, features)["image_embeddings"]
    assert made == []
    model(pixel_values=torch.randn(1, 3, 64, 64), input_boxes=torch.tensor([[[1.0, 2.0, 30.0, 40.0]]]))
    assert len(made) == 4
    assert [tuple(level.shape[1:]) for level in embedded] == [(4, 16, 16), (8, 8, 8), (32, 4, 4)]


def test_another_thread_gets_its_encodings():
    neck = make_tiny("sam2").requires_grad_(False).vision_encoder.neck
    sizes = []
    with without_position_encodings(neck):
        thread = threading.Thread(
            target=lambda: sizes.append(neck.position_encoding(torch.Size((1, 32, 4, 4)), "cpu", torch.float32).shape)
        )
        thread.start()
        thread.join()
    assert sizes == [(1, 32, 4, 4)]


def test_a_neck_without_encodings_is_left_alone():
    neck = nn.Sequential(nn.Linear(2, 2))
    with without_position_encodings(neck):
        assert type(neck) is nn.Sequential
