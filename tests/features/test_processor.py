"""Stored features in the place of pixels, in this process and others."""

import pickle

import torch

from samparser.features.cache import FeatureCache
from samparser.features.keys import image_key
from samparser.prompts import PromptedDataset, PromptSettings, collate
from tests.conftest import make_tiny_sam
from tests.features.feature_samples import make_samples, train_neck


def test_worker_processes_read_features(tmp_path, tiny_processor):
    samples = make_samples(4)
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    cache.fill(samples, progress=False)
    dataset = PromptedDataset(samples, cache.processor, PromptSettings(jitter_max=3))
    loader = torch.utils.data.DataLoader(
        dataset, collate_fn=collate, num_workers=1, batch_size=2, multiprocessing_context="fork"
    )
    batches = [batch["pixel_values"][0] for batch in loader]
    expected = torch.stack([cache.store.read(image_key(sample.image))[0] for sample in samples])
    torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=0)


def test_the_processor_can_be_sent_to_a_process(tmp_path, tiny_processor):
    cache = FeatureCache(tmp_path, train_neck(make_tiny_sam()), tiny_processor)
    (sample,) = make_samples(1)
    (expected,) = cache.features(sample.image)
    processor = pickle.loads(pickle.dumps(cache.processor))
    torch.testing.assert_close(processor(sample.image)["pixel_values"][0][0], expected, rtol=0, atol=0)
    assert processor.size == tiny_processor.image_processor.size
    assert len(pickle.dumps(cache.store)) < 1000
