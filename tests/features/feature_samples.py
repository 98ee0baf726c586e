"""Small images, and SAMs of which the neck or the decoder is trained, for tests of cached features."""

import numpy as np

from samparser.data import Instance, Sample

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
