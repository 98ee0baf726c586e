"""Mirrored samples."""

import numpy as np
import torch

from samparser.data import Instance, Sample
from samparser.data.flips import Flipped, RandomlyFlipped, flip_sample
from samparser.features.cache import FeatureCache
from tests.conftest import make_tiny_sam
from tests.features.feature_samples import make_samples, train_neck


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
