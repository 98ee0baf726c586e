import json

import pytest
import torch

from samparser.methods import build, load_trained, save_trained
from tests.conftest import make_tiny_sam

from .conftest import masks, tuned_tiny_sam


@pytest.mark.parametrize("name", ["lora", "lora-qkv", "decoder", "adapter"])
def test_another_base_is_refused_by_name_and_nothing_is_changed(name, tmp_path, other_tiny_sam):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    before = {key: tensor.clone() for key, tensor in other_tiny_sam.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"trained on another base: this SamModel differs in \d+ of \d+ weights .*first"
    ):
        load_trained(other_tiny_sam, tmp_path / "out")
    after = other_tiny_sam.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["samparser", "samparser-coefficients", "transformer", "bases"])
def test_coefficients_refuse_another_base_themselves(name, tmp_path, other_tiny_sam):
    save_trained(build(name, make_tiny_sam()), tmp_path / "out")
    with pytest.raises(ValueError, match=r"(?i)base"):
        load_trained(other_tiny_sam, tmp_path / "out")


def test_one_changed_frozen_weight_is_noticed_and_named(tmp_path):
    save_trained(build("decoder", make_tiny_sam()), tmp_path / "out")
    base = make_tiny_sam()
    with torch.no_grad():
        base.vision_encoder.layers[1].mlp.lin2.bias[3] += 1e-3
    with pytest.raises(
        ValueError, match=r"differs in 1 of \d+ weights .*first vision_encoder\.layers\.1\.mlp\.lin2\.bias"
    ):
        load_trained(base, tmp_path / "out")


def test_the_weights_that_were_trained_over_need_not_agree(tmp_path, tiny_inputs):
    model = tuned_tiny_sam("decoder")
    save_trained(model, tmp_path / "out")
    base = make_tiny_sam()
    with torch.no_grad():
        for parameter in base.mask_decoder.parameters():
            parameter.zero_()
    assert torch.equal(masks(load_trained(base, tmp_path / "out"), tiny_inputs), masks(model, tiny_inputs))


def test_a_base_in_another_dtype_is_refused_with_the_way_out(tmp_path):
    save_trained(build("lora", make_tiny_sam()), tmp_path / "out")
    half = make_tiny_sam().to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"base in float32; this SamModel is in bfloat16 .* Load the base in float32"):
        load_trained(half, tmp_path / "out")
    load_trained(half, tmp_path / "out", check_base=False)


def test_the_comparison_with_the_base_can_be_left_out(tmp_path, other_tiny_sam, tiny_inputs):
    save_trained(tuned_tiny_sam("lora"), tmp_path / "out")
    loaded = load_trained(other_tiny_sam, tmp_path / "out", check_base=False)
    assert torch.isfinite(masks(loaded, tiny_inputs)).all()


def test_every_format_of_saving_checks_the_base(tmp_path):
    for name in ("decoder", "lora", "lora-qkv", "samparser", "bases"):
        save_trained(build(name, make_tiny_sam()), tmp_path / name)
        card = json.loads((tmp_path / name / "method.json").read_text())
        config = tmp_path / name / "adapter_config.json"
        checked_by_tuner = config.exists() and json.loads(config.read_text()).get("base_record")
        assert bool(card.get("base")) != bool(checked_by_tuner), name
