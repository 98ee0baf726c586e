"""SAM-HQ: what its decoder needs beside the embeddings."""

import pytest
import torch

from samparser.sam import family_of
from tests.sam.tiny import make_tiny

BOXES = {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])}


def test_embeddings_alone_are_refused_as_the_model_would_give_other_masks():
    model = make_tiny("sam_hq")
    family = family_of(model)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedded = family.embed(model, family.encode(model, pixels))
        logits, _ = family.decode(model, embedded, BOXES)
        alone = {"image_embeddings": embedded["image_embeddings"]}
        others = model(**alone, multimask_output=False, **BOXES).pred_masks
        assert (others - logits).abs().max() > 0.1
        with pytest.raises(ValueError, match="needs intermediate_embeddings beside image_embeddings"):
            family.decode(model, alone, BOXES)


def test_an_encoder_without_global_attention_gives_the_neck_input_alone():
    model = make_tiny("sam_hq")
    for layer in model.vision_encoder.layers:
        layer.window_size = 4
    model.config.vision_config.global_attn_indexes = []
    family = family_of(model)
    assert family.feature_shapes(model.config) == [(8, 8, 24)]
