"""What a cached feature is filed under: every input that decides it, and nothing else."""

import numpy as np
import torch

from samparser.features.keys import image_key, named_tensors, upstream_fingerprint
from samparser.sam import family_of

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_an_image_goes_by_shape_and_pixels_and_not_by_its_layout_in_memory():
    assert image_key(IMAGE) == image_key(np.asfortranarray(IMAGE))
    others = [IMAGE[::-1], IMAGE.reshape(4, 2, 3), IMAGE.astype(np.int16)]
    assert len({image_key(IMAGE), *map(image_key, others)}) == 4


def fingerprint(model, images, *, config=None, form="tokens", projection=None, order=1):
    tensors = list(named_tensors(family_of(model).upstream(model)).items())[::order]
    return upstream_fingerprint(tensors, config or {"layers": 2}, images, form, projection)


def test_each_input_changes_the_fingerprint_and_the_order_of_weights_does_not(tiny_sam, tiny_processor):
    encoder, images = tiny_sam.vision_encoder, tiny_processor.image_processor
    plain = fingerprint(tiny_sam, images)
    assert fingerprint(tiny_sam, images, order=-1) == plain
    assert fingerprint(tiny_sam, images, config={"layers": 2, "transformers_version": "9"}) == plain
    others = {
        fingerprint(tiny_sam, images, config={"layers": 3}),
        fingerprint(tiny_sam, images, form="embedding"),
        fingerprint(tiny_sam, images, projection=torch.ones(1, 24)),
        fingerprint(tiny_sam, images, projection=torch.zeros(1, 24)),
    }
    with torch.no_grad():
        encoder.neck.conv1.weight += 1
    assert fingerprint(tiny_sam, images) == plain
    with torch.no_grad():
        encoder.pos_embed[0, 0, 0, 0] += 1e-6
    assert len({plain, *others, fingerprint(tiny_sam, images)}) == 6


def test_modules_and_parameters_are_named_as_in_the_state_of_the_model(tiny_sam):
    encoder = tiny_sam.vision_encoder
    tensors = named_tensors({"vision_encoder.pos_embed": encoder.pos_embed, "vision_encoder.neck": encoder.neck})
    expected = {name for name in tiny_sam.state_dict() if ".neck." in name or name.endswith("pos_embed")}
    assert tensors.keys() == expected
    assert all(tensors[name] is tiny_sam.get_parameter(name) for name in expected)
