"""What a cached feature is filed under: every input that decides it, and nothing else."""

import numpy as np
import pytest
import torch

from samparser.features.keys import image_key, upstream_fingerprint, upstream_tensors

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_an_image_goes_by_shape_and_pixels_and_not_by_its_layout_in_memory():
    assert image_key(IMAGE) == image_key(np.asfortranarray(IMAGE))
    others = [IMAGE[::-1], IMAGE.reshape(4, 2, 3), IMAGE.astype(np.int16)]
    assert len({image_key(IMAGE), *map(image_key, others)}) == 4


def fingerprint(encoder, images, *, config=None, form="tokens", projection=None, order=1):
    tensors = list(upstream_tensors(encoder, with_neck=form == "embedding").items())[::order]
    return upstream_fingerprint(tensors, config or {"layers": 2}, images, form, projection)


def test_each_input_changes_the_fingerprint_and_the_order_of_weights_does_not(tiny_sam, tiny_processor):
    encoder, images = tiny_sam.vision_encoder, tiny_processor.image_processor
    plain = fingerprint(encoder, images)
    assert fingerprint(encoder, images, order=-1) == plain
    assert fingerprint(encoder, images, config={"layers": 2, "transformers_version": "9"}) == plain
    others = {
        fingerprint(encoder, images, config={"layers": 3}),
        fingerprint(encoder, images, form="embedding"),
        fingerprint(encoder, images, projection=torch.ones(1, 24)),
        fingerprint(encoder, images, projection=torch.zeros(1, 24)),
    }
    with torch.no_grad():
        encoder.neck.conv1.weight += 1
    assert fingerprint(encoder, images) == plain
    with torch.no_grad():
        encoder.pos_embed[0, 0, 0, 0] += 1e-6
    assert len({plain, *others, fingerprint(encoder, images)}) == 6


@pytest.mark.parametrize("with_neck", [True, False])
def test_the_neck_counts_where_it_is_asked_for(tiny_sam, with_neck):
    names = upstream_tensors(tiny_sam.vision_encoder, with_neck=with_neck)
    assert any(name.startswith("neck.") for name in names) is with_neck
    assert "patch_embed.projection.weight" in names
