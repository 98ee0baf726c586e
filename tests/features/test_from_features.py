"""Features in place of pixels, in whatever wraps the model."""

import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.features.from_features import taking_features
from samparser.sam import family_of

BOXES = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])


@pytest.fixture
def pixels(generator):
    return torch.randn(1, 3, 64, 64, generator=generator)


def tuned(model):
    return get_peft_model(model, SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))


@pytest.mark.parametrize("wrap", [tuned, lambda model: torch.nn.DataParallel(tuned(model))], ids=["peft", "parallel"])
@pytest.mark.parametrize("by_name", [True, False])
def test_masks_and_gradients_are_those_from_pixels_bit_for_bit(tiny_sam, pixels, wrap, by_name):
    model = wrap(tiny_sam).train()
    inner = getattr(model, "module", model)
    family, trained = family_of(inner), [p for p in model.parameters() if p.requires_grad]
    names = list(model.state_dict())
    expected = model(pixel_values=pixels, input_boxes=BOXES, multimask_output=False).pred_masks
    expected.square().mean().backward()
    gradients = [parameter.grad for parameter in trained]
    model.zero_grad(set_to_none=True)
    features = family.encode(inner, pixels)
    with taking_features(inner, family, [(8, 8, 24)], torch.float32, after_neck=False):
        assert list(model.state_dict()) == names
        arguments = {"input_boxes": BOXES, "multimask_output": False}
        output = model(pixel_values=features, **arguments) if by_name else model(features, **arguments)
        output.pred_masks.square().mean().backward()
    assert torch.equal(output.pred_masks, expected)
    assert len(trained) > 50
    for parameter, gradient in zip(trained, gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert not family_of(inner).upstream(inner).keys() & {"vision_encoder.neck"}
    assert torch.equal(model(pixel_values=pixels, input_boxes=BOXES, multimask_output=False).pred_masks, expected)


@torch.no_grad()
def test_embeddings_go_past_the_neck(tiny_sam, pixels):
    expected = tiny_sam(pixel_values=pixels, input_boxes=BOXES).pred_masks
    embedding, neck = tiny_sam.get_image_embeddings(pixels), tiny_sam.vision_encoder.neck
    with taking_features(tiny_sam, family_of(tiny_sam), [(32, 8, 8)], torch.float32, after_neck=True):
        assert torch.equal(tiny_sam(pixel_values=(embedding,), input_boxes=BOXES).pred_masks, expected)
        # What is embedded already is nobody's to change.
        assert torch.equal(tiny_sam(image_embeddings=embedding, input_boxes=BOXES).pred_masks, expected)
    assert tiny_sam.vision_encoder.neck is neck
    assert not tiny_sam._forward_pre_hooks


@torch.no_grad()
def test_features_of_another_shape_are_refused_and_half_precision_is_widened(tiny_sam, pixels):
    family = family_of(tiny_sam)
    features = tuple(tensor.half() for tensor in family.encode(tiny_sam, pixels))
    with taking_features(tiny_sam, family, [(8, 8, 24)], torch.float32, after_neck=False):
        assert tiny_sam(pixel_values=features, input_boxes=BOXES).pred_masks.dtype == torch.float32
        with pytest.raises(ValueError, match=r"shape \(batch, 8, 8, 24\); it got \(1, 3, 64, 64\)"):
            tiny_sam(pixel_values=pixels, input_boxes=BOXES)
        with pytest.raises(ValueError, match=r"it got \(1, 8, 8, 24\) and \(1, 8, 8, 24\)"):
            tiny_sam(pixel_values=features * 2, input_boxes=BOXES)
