"""Default targets of every SAM, and the level of SAM 3's neck that its tracker computes for nothing."""

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn

from samparser import SVDCoefficientConfig
from samparser.tuner import unused_coefficients
from samparser.tuner.defaults import MODEL_TYPES, default_targets
from tests.sam.tiny import sam3_parts
from tests.tuner.models import layers

NECK = "vision_encoder.neck"
FOUR_LEVELS = (4.0, 2.0, 1.0, 0.5)


def projections(levels: int) -> list[str]:
    return [f"{NECK}.fpn_layers.{level}.proj{part}" for level in range(levels) for part in (1, 2)]


def tracker(scale_factors: tuple[float, ...] = FOUR_LEVELS) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**sam3_parts(scale_factors)))
    with torch.no_grad():  # As drawn, most of what a layer gives would be lost to rounding.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


def masks(model: nn.Module) -> torch.Tensor:
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 44.0]]])
    return model(pixel_values=pixels, input_boxes=boxes, multimask_output=False).pred_masks


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if not name.startswith("sam3")])
def test_the_default_is_the_whole_neck(model_type):
    assert default_targets(model_type, {}) == [NECK]


def test_a_type_that_is_not_known_has_no_default():
    assert default_targets("gpt2", {}) is None


@pytest.mark.parametrize(
    ("model_type", "factors", "sizes", "levels"),
    [
        ("sam3_tracker", 4, 3, 3),
        ("sam3_tracker", 3, 3, 3),
        ("sam3_tracker", 4, 4, 4),
        ("sam3", 4, 3, 3),
        ("sam3", 3, 3, 2),
        ("sam3_tracker_video", 4, 3, 3),
    ],
)
def test_levels_that_a_model_of_sam_3_leaves_out_are_no_default(model_type, factors, sizes, levels):
    vision = {"scale_factors": [1.0] * factors, "backbone_feature_sizes": [[4, 4]] * sizes}
    assert default_targets(model_type, {"vision_config": vision}) == projections(levels)


@pytest.mark.parametrize(("scale_factors", "levels"), [(FOUR_LEVELS, 3), (FOUR_LEVELS[:3], 3)])
def test_every_default_coefficient_of_the_tracker_gets_a_gradient(scale_factors, levels):
    model = get_peft_model(tracker(scale_factors), SVDCoefficientConfig())
    assert model.base_model.targeted_module_names == projections(levels)
    masks(model).square().mean().backward()
    assert unused_coefficients(model) == []
    # The neck as a whole has its transposed convolutions too.
    whole = get_peft_model(tracker(scale_factors), SVDCoefficientConfig(target_modules=["neck"]))
    extra = {f"{NECK}.fpn_layers.{place}" for place in ("0.scale_layers.0", "0.scale_layers.2", "1.scale_layers.0")}
    dead = {name for name in projections(4) if ".3." in name} if len(scale_factors) == 4 else set()
    assert set(whole.base_model.targeted_module_names) == {*projections(levels), *extra, *dead}


def test_with_published_sizes_the_default_trains_1536_numbers_and_the_neck_4608():
    def numbers(**choices: object) -> int:
        with torch.device("meta"):
            model = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig())
        return get_peft_model(model, SVDCoefficientConfig(**choices)).get_nb_trainable_parameters()[0]

    assert numbers() == 1536
    assert numbers(target_modules=["neck"]) == 4608
    # Without the level that trains nothing.
    assert numbers(target_modules=["neck"], exclude_modules=["fpn_layers.3"]) == 4096


def test_the_tracker_computes_its_fourth_level_for_nothing():
    """Tell when transformers uses it: then its coefficients train, and `default_targets` should name them."""
    model = get_peft_model(tracker(), SVDCoefficientConfig(target_modules=["neck"]))
    masks(model).square().mean().backward()
    assert unused_coefficients(model) == [name for name in projections(4) if ".3." in name]
    assert len(layers(model)) == 11


def test_the_tracker_adds_its_embedding_of_no_memory_to_the_level_that_it_drops():
    """Tell when transformers mends it: then masks of the base model change, and what adapters learnt with them."""
    changes = []
    for scale_factors in (FOUR_LEVELS, FOUR_LEVELS[:3]):
        model = tracker(scale_factors)
        with torch.no_grad():
            before = masks(model)
            model.no_memory_embedding.add_(10)
            changes.append((masks(model) - before).abs().max().item())
    assert changes[0] == 0
    assert changes[1] > 1e-3
