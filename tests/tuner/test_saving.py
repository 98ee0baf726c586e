"""Adapters on disk: every way to load them gives the same model, and damaged ones leave it alone."""

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import (
    AutoPeftModel,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from torch import nn
from transformers import SamConfig, SamModel

from samparser import SVDCoefficientConfig
from tests.conftest import make_tiny_sam
from tests.tuner.models import (
    INPUTS,
    SKIP_NEWER_PEFT,
    TARGETS,
    batch,
    layers,
    make,
    move,
    output,
    train,
    trained_names,
    with_adapters,
)

CHOICES = [
    {},
    {"parametrization": "relative"},
    {"trainable": "bases"},
    {"trainable": "both"},
    {"save_basis": True},
    {"rank": 3},
    {"scaling": 0.5},
]


def sam_input() -> dict:
    torch.manual_seed(3)
    return {
        "pixel_values": torch.randn(2, 3, 64, 64),
        "input_boxes": torch.tensor([[[5.0, 5, 40, 40]], [[10.0, 10, 50, 60]]]),
        "multimask_output": False,
    }


def masks(model: nn.Module) -> torch.Tensor:
    return output(model, **sam_input()).pred_masks


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("kind", INPUTS)
def test_a_reloaded_adapter_gives_the_same_output_bit_for_bit(kind, choices, tmp_path):
    model, x = get_peft_model(make(kind), SVDCoefficientConfig(target_modules=TARGETS[kind], **choices)), batch(kind)
    train(model, x)
    model.save_pretrained(tmp_path)
    expected = output(model, x)
    assert not torch.equal(expected, output(make(kind), x))
    for how in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}, {"torch_device": "cpu"}):
        loaded = PeftModel.from_pretrained(make(kind), tmp_path, **how)
        assert torch.equal(output(loaded, x), expected), how
        assert bool(trained_names(loaded)) == how.get("is_trainable", False)


@settings(max_examples=15)
@given(shape=st.tuples(st.integers(1, 8), st.integers(1, 8)), seed=st.integers(0, 1000), size=st.floats(0, 10))
def test_saving_and_loading_keeps_every_bit_of_the_coefficients(tmp_path_factory, shape, seed, size):
    torch.manual_seed(seed)
    plain = nn.Linear(*shape)
    model = get_peft_model(nn.ModuleDict({"x": plain}), SVDCoefficientConfig(target_modules=["x"]))
    move(model, by=size, seed=seed)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    twin = nn.Linear(*shape)
    twin.load_state_dict({name: p.clone() for name, p in model.unload()["x"].state_dict().items()})
    loaded = PeftModel.from_pretrained(nn.ModuleDict({"x": twin}), folder)
    saved = load_file(folder / "adapter_model.safetensors")
    (p,) = saved.values()
    assert torch.equal(layers(loaded)[0].svd_coefficient_p["default"], p)


def test_the_file_of_a_vit_b_neck_has_two_tensors_and_fits_into_8_kb(tmp_path):
    torch.manual_seed(0)
    neck = SamModel(SamConfig(vision_config={"num_hidden_layers": 1})).vision_encoder.neck
    nn.init.normal_(neck.conv1.weight)
    nn.init.normal_(neck.conv2.weight)
    model = get_peft_model(nn.ModuleDict({"neck": neck}), SVDCoefficientConfig(target_modules=["neck"]))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    assert {name: tuple(t.shape) for name, t in load_file(path).items()} == {
        "base_model.model.neck.conv1.svd_coefficient_p": (256,),
        "base_model.model.neck.conv2.svd_coefficient_p": (256,),
    }
    assert path.stat().st_size <= 8192
    assert (tmp_path / "adapter_config.json").stat().st_size <= 8192


def test_saved_bases_are_in_the_file_only_if_asked_for(tmp_path):
    model = get_peft_model(make("MLP"), SVDCoefficientConfig(target_modules=["lin0"], save_basis=True))
    model.save_pretrained(tmp_path)
    assert {
        name.rsplit(".", 1)[1]: tuple(t.shape) for name, t in load_file(tmp_path / "adapter_model.safetensors").items()
    } == {
        "svd_coefficient_p": (10,),
        "svd_coefficient_u": (12, 10),
        "svd_coefficient_vh": (10, 10),
    }


def test_the_folder_has_a_card_that_imports_samparser_first(tmp_path):
    with_adapters("MLP", "default").save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    card = (tmp_path / "README.md").read_text()
    assert card.rstrip().splitlines()[-1].startswith("This adapter needs `import samparser`")
    assert "library_name: peft" in card
    with_adapters("MLP", "default").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().strip() == card.strip()


def test_the_card_names_the_base_model_that_the_configuration_names_a_local_folder_too(tmp_path, tiny_sam_folder):
    base = SamModel.from_pretrained(tiny_sam_folder)
    get_peft_model(base, SVDCoefficientConfig(target_modules=["neck"])).save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data["base_model"] == str(tiny_sam_folder)


def test_a_card_above_adapters_with_names_of_their_own_imports_samparser_and_no_other_file_does(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    with_adapters("MLP", "default").save_pretrained(tmp_path / "one")
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    with_adapters("MLP", "one", "two").save_pretrained(tmp_path / "several")
    assert (tmp_path / "several" / "README.md").read_text().count("import samparser") == 1


def test_adapters_with_names_of_their_own_are_saved_and_loaded_side_by_side(tmp_path):
    model, x = with_adapters("ConvNet", "one", "two"), batch("ConvNet")
    model.save_pretrained(tmp_path)
    expected = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        expected[name] = output(model, x)
    loaded = PeftModel.from_pretrained(make("ConvNet"), tmp_path / "two", adapter_name="zwei")
    loaded.load_adapter(tmp_path / "one", "eins", is_trainable=True)
    assert torch.equal(output(loaded, x), expected["two"])
    loaded.set_adapter("eins")
    assert torch.equal(output(loaded, x), expected["one"])


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_tensors_go_into_a_model_with_injected_layers(low_cpu_mem_usage):
    model, x = inject_adapter_in_model(SVDCoefficientConfig(target_modules=["neck"]), make("ConvNet")), batch("ConvNet")
    move(model)
    tensors = get_peft_model_state_dict(model)
    assert sorted(tensors) == ["neck.0.svd_coefficient_p", "neck.2.svd_coefficient_p"]
    config = SVDCoefficientConfig(target_modules=["neck"])
    other = inject_adapter_in_model(config, make("ConvNet"), state_dict=tensors, low_cpu_mem_usage=low_cpu_mem_usage)
    result = set_peft_model_state_dict(other, tensors, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert torch.equal(output(other, x), output(model, x))


@SKIP_NEWER_PEFT
def test_transformers_own_loading_takes_and_gives_adapters(tmp_path):
    sam = make_tiny_sam()
    plain = masks(sam)
    sam.add_adapter(SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))
    assert torch.equal(masks(sam), plain)
    move(sam)
    tuned = masks(sam)
    sam.save_pretrained(tmp_path)
    sam.disable_adapters()
    assert torch.equal(masks(sam), plain)
    sam.enable_adapters()
    other = make_tiny_sam()
    other.load_adapter(tmp_path)
    assert torch.equal(masks(other), tuned)
    assert torch.equal(masks(PeftModel.from_pretrained(make_tiny_sam(), tmp_path)), tuned)
    other.delete_adapter("default")
    assert torch.equal(masks(other), plain)


@SKIP_NEWER_PEFT
def test_transformers_keeps_coefficients_in_float32_for_a_half_precision_model(tmp_path):
    sam = make_tiny_sam().bfloat16()
    sam.add_adapter(SVDCoefficientConfig(target_modules=["neck"]))
    move(sam)
    sam.save_pretrained(tmp_path)
    other = make_tiny_sam().bfloat16()
    other.load_adapter(tmp_path)
    for name, parameter in sam.named_parameters():
        if "svd_coefficient" in name:
            assert parameter.dtype == torch.float32
            assert torch.equal(other.get_parameter(name), parameter)


@SKIP_NEWER_PEFT
def test_transformers_refuses_an_adapter_of_another_base_model(tmp_path, other_tiny_sam):
    sam = make_tiny_sam()
    sam.add_adapter(SVDCoefficientConfig(target_modules=["neck"]))
    sam.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this base model. vision_encoder.neck.conv1"):
        other_tiny_sam.load_adapter(tmp_path)
    assert isinstance(other_tiny_sam.vision_encoder.neck.conv1, nn.Conv2d)


def test_the_auto_classes_find_model_and_adapter(tmp_path, tiny_sam_folder):
    base = SamModel.from_pretrained(tiny_sam_folder)
    model = get_peft_model(base, SVDCoefficientConfig(target_modules=["neck"]))
    move(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(masks(AutoPeftModel.from_pretrained(tmp_path)), masks(model))
    assert torch.equal(masks(SamModel.from_pretrained(tmp_path)), masks(model))


def test_hotswapping_is_refused_by_name(tmp_path):
    model = with_adapters("MLP", "default")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Hotswapping only supports .* but SVD_COEFFICIENT was passed"):
        hotswap_adapter(model, tmp_path, adapter_name="default")


def test_rescaling_is_refused_by_name():
    with (
        pytest.raises(ValueError, match="scaling is only supported for models with `LoraLayer`s"),
        rescale_adapter_scale(with_adapters("MLP", "default"), 0.5),
    ):
        pass


def test_one_configuration_serves_several_models():
    config = SVDCoefficientConfig(target_modules=["lin0"])
    first = get_peft_model(make("MLP"), config)
    assert first.peft_config["default"] is config
    get_peft_model_state_dict(first)
    get_peft_model(make("MLP", seed=5), config)
    assert config.base_record is None
