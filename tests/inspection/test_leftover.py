"""What two models differ in, part by part."""

import pytest
import torch

from samparser.inspection.leftover import changed_parts
from tests.conftest import make_tiny_sam


def test_parts_are_counted_and_the_one_that_changed_most_comes_first():
    base, other = make_tiny_sam(), make_tiny_sam()
    assert changed_parts(base, other) == ()
    with torch.no_grad():
        other.vision_encoder.pos_embed.add_(0.5)
        other.vision_encoder.layers[1].attn.qkv.bias.add_(0.01)
        other.vision_encoder.layers[0].attn.qkv.bias.add_(0.01)
        other.mask_decoder.iou_token.weight.mul_(3)
    found = {part.part: part for part in changed_parts(base, other, keep=["mask_decoder"])}
    sizes = base.vision_encoder.pos_embed.numel(), base.vision_encoder.layers[0].attn.qkv.bias.numel()
    assert {name: part.numbers for name, part in found.items()} == {
        "vision_encoder.pos_embed": sizes[0],
        "mask_decoder": base.mask_decoder.iou_token.weight.numel(),
        "vision_encoder.layers": 2 * sizes[1],
    }
    assert found["vision_encoder.pos_embed"].change == pytest.approx(0.5 * sizes[0] ** 0.5, rel=1e-5)
    assert found["mask_decoder"].relative == pytest.approx(2)
    assert [part.kept for part in found.values()] == [name == "mask_decoder" for name in found]
    changes = [part.change for part in found.values()]
    assert changes == sorted(changes, reverse=True)
    without = changed_parts(base, other, without=["vision_encoder.pos_embed", "mask_decoder.iou_token.weight"])
    assert [part.part for part in without] == ["vision_encoder.layers"]
