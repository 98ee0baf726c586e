"""Which numbers of an adapter train, how many there are, and where they start."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import SamConfig, SamModel

from samparser import SVDCoefficientConfig
from tests.tuner.models import batch, layers, make, move, output, train, trained_names

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    ("choices", "parts"),
    [
        ({}, {"p"}),
        ({"parametrization": "relative"}, {"d"}),
        ({"trainable": "bases"}, {"u", "vh"}),
        ({"trainable": "both"}, {"p", "u", "vh"}),
        ({"trainable": "both", "parametrization": "relative"}, {"d", "u", "vh"}),
        ({"save_basis": True}, {"p"}),
    ],
)
def test_exactly_the_chosen_parts_train_and_training_moves_only_them(choices, parts):
    model, x = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], **choices)), batch("MLP")
    expected = {f"base_model.model.lin0.svd_coefficient_{part}.default" for part in parts}
    assert trained_names(model) == expected
    before = {name: p.clone() for name, p in model.named_parameters()}
    train(model, x)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == expected


def test_a_sam_neck_trains_512_numbers_in_two_tensors_and_the_decoder_if_asked(tiny_sam):
    model = get_peft_model(tiny_sam, SVDCoefficientConfig(target_modules=["neck"]))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    path = "base_model.model.vision_encoder.neck"
    # The neck of ViT-B has 256 output channels in both convolutions; this small one has 32 on 24 and 32.
    assert trained == {f"{path}.conv1.svd_coefficient_p.default": 24, f"{path}.conv2.svd_coefficient_p.default": 32}


def test_vit_b_trains_512_numbers_alone_and_4058340_more_with_the_decoder():
    for modules, expected in ((None, 512), (["mask_decoder"], 512 + 4_058_340)):
        with torch.device("meta"):
            sam = SamModel(SamConfig())
        model = get_peft_model(sam, SVDCoefficientConfig(target_modules=["neck"], modules_to_save=modules))
        assert model.get_nb_trainable_parameters()[0] == expected


def test_bases_of_the_vit_b_neck_have_917504_numbers():
    with torch.device("meta"):
        sam = SamModel(SamConfig())
    model = get_peft_model(sam, SVDCoefficientConfig(target_modules=["neck"], trainable="bases"))
    assert model.get_nb_trainable_parameters()[0] == 917_504


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("all", {"lin0.base_layer.bias", "norm.bias"}),
        ("svd_coefficient_only", {"lin0.base_layer.bias"}),
        ("none", set()),
    ],
)
def test_biases_train_as_chosen_and_come_back_from_the_file(bias, expected, tmp_path):
    model, x = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], bias=bias)), batch("MLP")
    names = {name.removeprefix("base_model.model.") for name in trained_names(model)}
    assert names == expected | {"lin0.svd_coefficient_p.default"}
    train(model, x)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(make("MLP"), tmp_path), x), output(model, x))


def test_ranks_limit_what_trains_and_where_the_weight_changes():
    config = SVDCoefficientConfig(target_modules=["lin0", "lin1"], rank=4, rank_pattern={"lin1": 2})
    model = get_peft_model(make("MLP"), config)
    move(model)
    lin0, lin1 = layers(model)
    assert (lin0.svd_coefficient_p["default"].shape, lin1.svd_coefficient_p["default"].shape) == ((4,), (2,))
    assert torch.linalg.matrix_rank(lin0.get_delta_weight("default")) == 4
    assert torch.linalg.matrix_rank(lin1.get_delta_weight("default")) == 2
    whole = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], rank=1000))
    assert layers(whole)[0].svd_coefficient_p["default"].shape == (10,)


def test_a_random_start_moves_the_output_and_follows_the_seed():
    def start(seed: int, **choices) -> torch.Tensor:
        model = make("MLP")
        torch.manual_seed(seed)
        config = SVDCoefficientConfig(target_modules=["lin0"], init_weights=False, **choices)
        return output(get_peft_model(model, config), batch("MLP"))

    plain = output(make("MLP"), batch("MLP"))
    for choices in ({}, {"parametrization": "relative"}, {"trainable": "both"}, {"trainable": "bases"}):
        assert torch.equal(start(1, **choices), start(1, **choices))
        assert not torch.allclose(start(1, **choices), start(2, **choices), **CLOSE)
        assert not torch.allclose(start(1, **choices), plain, **CLOSE)
