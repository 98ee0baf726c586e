"""Necks of the whole SAM line."""

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model

from samparser.sam import FAMILIES, count_coefficients, neck_targets
from samparser.sam.families.registry import TUNER_ONLY
from samparser.tuner.defaults import default_targets
from tests.sam.tiny import TinyStagesConfig, sam3_parts

# Sizes of the published SAM encoders that change their neck; the rest of each configuration is transformers' default.
SAM_SIZES = {"base": 768, "large": 1024, "huge": 1280}
SAM2_SIZES = {
    "tiny": [96, 192, 384, 768],
    "small": [96, 192, 384, 768],
    "base-plus": [112, 224, 448, 896],
    "large": [144, 288, 576, 1152],
}


def meta_model(class_name, size):
    model_class = getattr(transformers, class_name)
    family = FAMILIES.get(model_class.config_class.model_type)
    if family is not None and Version(transformers.__version__) < Version(family.needs_transformers):
        pytest.skip(f"{class_name} needs transformers {family.needs_transformers}")
    config = model_class.config_class()
    vision = config.vision_config
    if config.model_type in ("sam", "sam_hq"):
        vision.hidden_size, vision.num_hidden_layers = SAM_SIZES[size], 1
    elif config.model_type in ("sam2", "sam2_video"):
        vision.backbone_channel_list = SAM2_SIZES[size][::-1]
    elif config.model_type == "edgetam":
        # The published backbone is one of timm's; the neck is made by these numbers of channels alone.
        vision.backbone_config = TinyStagesConfig(channels=vision.backbone_channel_list[::-1])
    with torch.device("meta"):
        return model_class(config)


KNOWN = [*dict.fromkeys(FAMILIES.values()), *TUNER_ONLY.values()]
CASES = [(known.model_class, size, count) for known in KNOWN for size, count in known.coefficients.items()]


@pytest.mark.parametrize(("class_name", "size", "count"), CASES)
def test_the_neck_of_each_family_has_as_many_coefficients_as_the_table_says(class_name, size, count):
    if not hasattr(transformers, class_name):
        pytest.skip(f"this version of transformers has no {class_name}")
    model = meta_model(class_name, size)
    assert count_coefficients(model) == count
    modules = dict(model.named_modules())
    assert all(isinstance(modules[name], torch.nn.Conv2d) for name in neck_targets(model))


@pytest.mark.parametrize(("class_name", "size"), [case[:2] for case in CASES])
def test_the_default_targets_of_the_tuner_are_the_convolutions_of_the_neck(class_name, size):
    if not hasattr(transformers, class_name):
        pytest.skip(f"this version of transformers has no {class_name}")
    model = meta_model(class_name, size)
    model_type = model.config.model_type
    named = tuple(f"{target}." for target in default_targets(model_type, model.config.to_dict()))
    convolutions = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert [name for name in convolutions if f"{name}.".startswith(named)] == neck_targets(model)


def test_every_family_of_the_table_has_a_counted_size():
    assert all(known.coefficients for known in KNOWN)


@pytest.mark.parametrize("class_name", ["Sam2Model", "EdgeTamModel", "Sam3TrackerModel"])
def test_the_two_convolutions_after_the_neck_hold_96_more(class_name):
    decoder = meta_model(class_name, "tiny").mask_decoder
    assert [min(conv.weight.shape[:2]) for conv in (decoder.conv_s0, decoder.conv_s1)] == [32, 64]


@pytest.mark.parametrize(
    ("scale_factors", "levels"), [((4.0, 2.0, 1.0, 0.5), 3), ((4.0, 2.0, 1.0), 3), ((2.0, 1.0), 2)]
)
def test_levels_that_reach_no_mask_are_no_targets(scale_factors, levels):
    with torch.device("meta"):
        model = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**sam3_parts(scale_factors)))
    assert neck_targets(model) == [
        f"vision_encoder.neck.fpn_layers.{level}.proj{part}" for level in range(levels) for part in (1, 2)
    ]


def test_the_neck_of_the_original_sam_is_its_two_convolutions(tiny_sam):
    assert neck_targets(tiny_sam) == ["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"]
    assert count_coefficients(tiny_sam) == 24 + 32


def test_the_names_are_those_of_the_plain_model_also_under_adapters(tiny_sam):
    names, count = neck_targets(tiny_sam), count_coefficients(tiny_sam)
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=names, r=2))
    assert neck_targets(model) == names
    assert count_coefficients(model) == count


def test_a_model_without_a_known_neck_is_refused(tiny_sam):
    with pytest.raises(ValueError, match=r"Linear \(model type None\) has no known neck; known are sam, sam_hq, sam2"):
        neck_targets(torch.nn.Linear(2, 2))
    tiny_sam.vision_encoder.neck = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"SamModel has no convolution whose name matches .*neck.*target_modules"):
        neck_targets(tiny_sam)
