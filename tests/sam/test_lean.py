"""The lean decoder gives the masks, gradients and state of transformers' decoder, and leaves no trace."""

import copy
import threading
import unittest.mock

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F

import samparser
from samparser.sam import family_of
from samparser.sam.lean import lean_decoder
from tests.sam.tiny import TINY, make_tiny

BOXES = [[[4.0, 6.0, 40.0, 30.0], [10.0, 2.0, 20.0, 60.0]], [[1.0, 1.0, 9.0, 9.0], [30.0, 30.0, 60.0, 50.0]]]


def masks_and_gradients(model, *, multimask_output, dtype=None):
    torch.manual_seed(0)
    size = model.config.vision_config.image_size
    images = torch.randn(len(BOXES), 3, size, size)
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = model(pixel_values=images, input_boxes=torch.tensor(BOXES), multimask_output=multimask_output)
    masks = output.pred_masks.float()
    ((masks * torch.randn_like(masks)).mean() + output.iou_scores.float().sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return masks.detach(), output.iou_scores.detach(), gradients


@pytest.mark.parametrize("multimask_output", [False, True])
def test_masks_and_gradients_are_those_of_the_plain_decoder(tiny_sam, multimask_output):
    masks, scores, gradients = masks_and_gradients(tiny_sam, multimask_output=multimask_output)
    with lean_decoder(tiny_sam):
        lean_masks, lean_scores, lean_gradients = masks_and_gradients(tiny_sam, multimask_output=multimask_output)
    assert masks.std() > 0.01
    torch.testing.assert_close(lean_masks, masks)
    torch.testing.assert_close(lean_scores, scores)
    assert set(lean_gradients) == set(gradients)
    assert gradients["mask_decoder.upscale_conv2.weight"].abs().max() > 1e-6
    for name, gradient in gradients.items():
        torch.testing.assert_close(lean_gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_masks_under_autocast_are_as_near_as_half_precision_allows(tiny_sam):
    masks, _, _ = masks_and_gradients(tiny_sam, multimask_output=False, dtype=torch.bfloat16)
    with lean_decoder(tiny_sam):
        lean, _, _ = masks_and_gradients(tiny_sam, multimask_output=False, dtype=torch.bfloat16)
    torch.testing.assert_close(lean, masks, rtol=0.05, atol=0.02 * float(masks.abs().max()))


SAM_2 = ["BlockMaskDecoder", "_BlockConvTranspose", "_BlockConvTranspose", "_ChannelsLastGELU"]
UPSCALINGS = {
    "sam": SAM_2,
    "sam_hq": ["_BlockConvTranspose", "_OrderedConvTranspose"] * 3 + ["_ChannelsLastGELU"],
    **dict.fromkeys(("sam2", "edgetam", "sam3_tracker"), SAM_2),
}


def family_masks_and_gradients(model, prompts, multimask):
    family = family_of(model)
    size = family.frame(model).size
    features = family.encode(model, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))
    model.zero_grad()
    masks, scores = family.decode(model, family.embed(model, features), prompts, multimask)
    weights = torch.randn(masks.shape, generator=torch.Generator().manual_seed(1))
    ((masks * weights).mean() + scores.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return masks.detach(), scores.detach(), gradients


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_masks_and_gradients_of_every_family_are_those_of_its_plain_decoder(model_type, multimask, training):
    model = make_tiny(model_type).train(training)
    prompts = {"input_boxes": torch.tensor(BOXES)}
    masks, scores, gradients = family_masks_and_gradients(model, prompts, multimask)
    classes = [type(module) for module in model.modules()]
    with lean_decoder(model):
        changed = changed_classes(model, classes)
        lean_masks, lean_scores, lean_gradients = family_masks_and_gradients(model, prompts, multimask)
    assert changed == sorted(["AbsorbedAttention"] * 7 + UPSCALINGS[model_type])
    assert changed_classes(model, classes) == []
    assert masks.std() > 0.01
    torch.testing.assert_close(lean_masks, masks, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lean_scores, scores, rtol=1e-4, atol=1e-5)
    assert set(lean_gradients) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(lean_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_maps_of_the_neck_may_be_given_by_place():
    model = make_tiny("sam2").requires_grad_(False)
    decoder = model.mask_decoder
    parts = [torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(1, 2, 3, 32), torch.randn(1, 32, 4, 4)]
    maps = [torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8)]
    plain = decoder(*parts, True, maps)[0]
    with lean_decoder(model):
        torch.testing.assert_close(decoder(*parts, True, maps)[0], plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            decoder(*parts, multimask_output=True, high_resolution_features=maps)[0], plain, rtol=1e-4, atol=1e-5
        )


def changed_classes(model, classes):
    return sorted(type(m).__name__ for m, before in zip(model.modules(), classes, strict=True) if type(m) is not before)


def test_every_decoder_of_an_adapted_model_is_changed_and_every_class_is_put_back(tiny_sam):
    model = samparser.build("samparser", tiny_sam)
    classes, names = [type(module) for module in model.modules()], list(model.state_dict())
    # PEFT keeps the plain decoder beside the trained copy.
    attention = ["AbsorbedAttention"] * 7  # of two blocks three each, and the last one
    lean = sorted(
        [*attention, "BlockMaskDecoder", "_BlockConvTranspose", "_BlockConvTranspose", "_ChannelsLastGELU"] * 2
    )

    def fail_inside():
        with lean_decoder(model):
            assert changed_classes(model, classes) == lean
            with lean_decoder(model):
                pass
            assert changed_classes(model, classes) == lean  # the inner block changed nothing and put nothing back
            assert list(model.state_dict()) == names
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert changed_classes(model, classes) == []


@pytest.mark.parametrize("part", ["upscale_conv1", "activation"])
def test_an_upscaling_that_is_not_sams_is_left_alone(tiny_sam, part):
    decoder = tiny_sam.mask_decoder
    setattr(decoder, part, nn.Sequential(getattr(decoder, part)))
    classes = [type(module) for module in tiny_sam.modules()]
    with lean_decoder(tiny_sam):
        assert changed_classes(tiny_sam, classes) == ["AbsorbedAttention"] * 7


def test_attention_with_an_adapter_is_left_alone_and_the_masks_are_the_adapted_models(tiny_sam):
    targets = ["mask_decoder.transformer.layers.0.cross_attn_token_to_image.v_proj"]
    model = get_peft_model(tiny_sam, samparser.SVDCoefficientConfig(target_modules=targets))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2)
    classes = [type(module) for module in model.modules()]
    masks, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    with lean_decoder(model):
        assert changed_classes(model, classes).count("AbsorbedAttention") == 6
        lean, _, gradients = masks_and_gradients(tiny_sam, multimask_output=False)
    torch.testing.assert_close(lean, masks)
    assert len(gradients) == 1


def hook_of_accelerate(module):
    add_hook_to_module(module, ModelHook())


def hook_of_torch(module):
    module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("add_hook", [hook_of_accelerate, hook_of_torch])
@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("upscale_conv1", {"AbsorbedAttention"}),
        ("activation", {"AbsorbedAttention"}),
        ("transformer.final_attn_token_to_image.k_proj", {"BlockMaskDecoder", "AbsorbedAttention"}),
    ],
)
def test_a_part_with_hooks_is_left_alone_as_a_whole(tiny_sam, part, left, add_hook):
    masks, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    add_hook(tiny_sam.mask_decoder.get_submodule(part))
    classes = [type(module) for module in tiny_sam.modules()]
    with lean_decoder(tiny_sam):
        changed = changed_classes(tiny_sam, classes)
        lean, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    assert {name for name in changed if not name.startswith("_")} == left
    assert changed.count("AbsorbedAttention") == (6 if "attn" in part else 7)
    torch.testing.assert_close(lean, masks)


def test_hooks_on_the_decoder_see_its_masks_in_order(tiny_sam):
    masks, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    seen = []
    tiny_sam.mask_decoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0].detach()))
    classes = [type(module) for module in tiny_sam.modules()]
    with lean_decoder(tiny_sam):
        assert "BlockMaskDecoder" in changed_classes(tiny_sam, classes)
        masks_and_gradients(tiny_sam, multimask_output=False)
    torch.testing.assert_close(seen, [masks])


def test_a_decoder_with_offloaded_layers_gives_its_masks(tiny_sam):
    decoder = tiny_sam.mask_decoder
    size = tiny_sam.config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(len(BOXES), 3, size, size), "input_boxes": torch.tensor(BOXES)}
    with torch.no_grad():
        masks = tiny_sam(**inputs, multimask_output=False).pred_masks
        # Not the whole decoder: it uses the weights of its tokens without calling their modules.
        for part in (decoder.transformer, decoder.upscale_conv1, decoder.upscale_conv2):
            cpu_offload(part, execution_device=torch.device("cpu"))
        with lean_decoder(tiny_sam):
            lean = tiny_sam(**inputs, multimask_output=False).pred_masks
    assert decoder.upscale_conv1.weight.is_meta
    assert decoder.transformer.final_attn_token_to_image.k_proj.weight.is_meta
    torch.testing.assert_close(lean, masks)


def test_copies_made_inside_work_with_their_own_weights(tiny_sam):
    with lean_decoder(tiny_sam):
        twin = copy.deepcopy(tiny_sam)
    with torch.no_grad():
        twin.mask_decoder.upscale_conv2.weight.zero_()
        twin.mask_decoder.upscale_conv2.bias.zero_()
    zero, _, _ = masks_and_gradients(twin, multimask_output=False)
    assert torch.equal(zero, torch.zeros_like(zero))
    assert masks_and_gradients(tiny_sam, multimask_output=False)[0].abs().max() > 0


def test_a_second_thread_gets_the_masks_of_the_plain_decoder_at_any_moment(tiny_sam):
    """One thread enters and leaves the block over and over, another runs the model meanwhile."""
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64), "input_boxes": torch.tensor(BOXES[:1])}

    @torch.no_grad()
    def masks():
        return tiny_sam(**inputs, multimask_output=False).pred_masks

    expected, stop, errors = masks(), threading.Event(), []

    def run():
        while not stop.is_set():
            try:
                torch.testing.assert_close(masks(), expected)
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(150):
        with lean_decoder(tiny_sam):
            torch.testing.assert_close(masks(), expected)
    with lean_decoder(tiny_sam):
        for _ in range(20):
            torch.testing.assert_close(masks(), expected)
    stop.set()
    thread.join()
    assert errors == []


def test_blocks_of_two_threads_overlap_and_the_last_one_puts_the_classes_back(tiny_sam):
    classes = [type(module) for module in tiny_sam.modules()]
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with lean_decoder(tiny_sam):
            entered.set()
            leave.wait(30)

    masks, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    thread = threading.Thread(target=hold)
    with lean_decoder(tiny_sam):
        thread.start()
        assert entered.wait(30)
    changed = changed_classes(tiny_sam, classes)
    assert "BlockMaskDecoder" in changed  # the other thread is still inside
    plain, _, _ = masks_and_gradients(tiny_sam, multimask_output=False)
    assert torch.equal(plain, masks)
    leave.set()
    thread.join()
    assert changed_classes(tiny_sam, classes) == []


def test_only_the_thread_inside_the_block_computes_in_the_lean_way(tiny_sam):
    convolutions = []
    with lean_decoder(tiny_sam), torch.no_grad():
        embeddings = torch.randn(1, 32, 8, 8)
        box = torch.tensor(BOXES[:1])

        def count():
            with unittest.mock.patch.object(F, "conv_transpose2d", side_effect=F.conv_transpose2d) as called:
                tiny_sam(image_embeddings=embeddings, input_boxes=box)
            convolutions.append(called.call_count)

        count()
        thread = threading.Thread(target=count)
        with torch.no_grad():
            thread.start()
            thread.join()
    count()
    assert convolutions == [0, 2, 2]
