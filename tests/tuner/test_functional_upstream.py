"""With the neck as target, nothing before it may keep activations: that is where the step's cost would come from."""

import torch
from peft import LoraConfig, get_peft_model

from samparser import SVDCoefficientConfig
from tests.conftest import make_tiny_sam


def kept_activations(model) -> dict[str, int]:
    """Bytes that a forward pass keeps for the backward pass, by the part of the model that keeps them."""
    parts = {"layers": 0, "neck": 0, "decoder": 0}
    current = []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def count(tensor):
        if current and tensor.untyped_storage().data_ptr() not in parameters:
            parts[current[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    def watch(module, part):
        module.register_forward_pre_hook(lambda *_: current.append(part))
        module.register_forward_hook(lambda *_: current.pop() and None)

    sam = model.get_base_model()
    encoder = sam.vision_encoder
    for module in (encoder.patch_embed, *encoder.layers):
        watch(module, "layers")
    watch(encoder.neck, "neck")
    watch(sam.mask_decoder, "decoder")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(pixel_values=pixels, input_boxes=torch.tensor([[[8.0, 8, 40, 40]]]), multimask_output=False)
    output.pred_masks.square().mean().backward()
    return parts


def test_nothing_upstream_of_the_neck_keeps_activations():
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
    kept = kept_activations(get_peft_model(make_tiny_sam(), config).train())
    assert kept["layers"] == 0
    assert kept["neck"] > 0
    assert kept["decoder"] > 0


def test_the_measure_sees_what_training_upstream_keeps():
    config = LoraConfig(target_modules=["qkv"], r=2, modules_to_save=["mask_decoder"])
    kept = kept_activations(get_peft_model(make_tiny_sam(), config).train())
    assert kept["layers"] > 4 * kept["neck"]


def test_the_neck_keeps_less_with_coefficients_than_with_trained_weights():
    kept = {}
    for form in ("factored", "rebuilt"):
        model = get_peft_model(make_tiny_sam(), SVDCoefficientConfig(target_modules=["neck"], form=form))
        kept[form] = kept_activations(model.train())["neck"]
    assert kept["factored"] < kept["rebuilt"]


def test_no_tensor_upstream_requires_a_gradient():
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
    model = get_peft_model(make_tiny_sam(), config).train()
    entered = []
    neck = model.get_base_model().vision_encoder.neck
    neck.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0].requires_grad))
    output = model(pixel_values=torch.zeros(1, 3, 64, 64), input_boxes=torch.tensor([[[8.0, 8, 40, 40]]]))
    assert entered == [False]
    assert output.pred_masks.requires_grad
