"""Embeddings that are kept for as long as what they came from is the same."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.prediction.shared_encoder import SharedEncoder, using_adapter
from samparser.sam import neck_targets
from tests.conftest import make_tiny_sam

PIXELS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def two_adapters():
    sam = make_tiny_sam()
    config = LoraConfig(target_modules=neck_targets(sam), r=2, init_lora_weights=False)
    model = get_peft_model(sam, config, adapter_name="one")
    model.add_adapter("two", config)
    return model.eval()


@torch.no_grad()
def embedding_of(model):
    return model.get_base_model().get_image_embeddings(PIXELS)


def change_in_place(model):
    model.get_base_model().vision_encoder.neck.conv1.lora_A["one"].weight.mul_(2)


def exchange_data(model):
    weight = model.get_base_model().vision_encoder.neck.conv2.lora_B["one"].weight
    weight.data = weight.data * 2


def change_before_the_neck(model):
    model.get_base_model().vision_encoder.layers[1].mlp.lin1.bias.add_(1)


def switch(model):
    model.set_adapter("two")


def merge(model):
    model.merge_adapter(["two"])


def rescale(model):
    model.get_base_model().vision_encoder.neck.conv1.set_scale("one", 3)


@pytest.mark.parametrize("change", [change_in_place, exchange_data, change_before_the_neck, switch, rescale, merge])
@torch.no_grad()
def test_what_has_changed_is_computed_anew(change):
    model = two_adapters()
    encoder = SharedEncoder(model, PIXELS)
    before = encoder.embed()["image_embeddings"]
    assert encoder.embed()["image_embeddings"] is before
    change(model)
    after = encoder.embed()["image_embeddings"]
    # Whether a merged kernel meets its input inside the encoder or alone decides how oneDNN sums.
    torch.testing.assert_close(after, embedding_of(model), rtol=1e-4, atol=1e-5)
    assert (after - before).abs().mean() > 1e-3


@torch.no_grad()
def test_the_base_model_and_both_adapters_share_the_transformer():
    model = two_adapters()
    calls = []
    encoder = SharedEncoder(model, PIXELS)
    handle = model.get_base_model().vision_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for name in ("one", None, "two"):
        with using_adapter(model, name):
            found[name] = encoder.embed()["image_embeddings"]
    assert len(calls) == 1
    handle.remove()
    for name, embeddings in found.items():
        with using_adapter(model, name):
            assert torch.equal(embeddings, embedding_of(model))
    assert model.active_adapters == ["one"]
