"""Masks at original size: equal to transformers' own steps, to one prompt at a time, and under adapters."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser.prediction import SamPredictor, predict, predict_logits, to_original_size
from samparser.sam import neck_targets
from tests.conftest import make_tiny_sam

BOXES = np.array([[2, 3, 60, 40], [10, 0, 90, 59], [0, 0, 90, 60], [30, 20, 45, 31], [5, 5, 20, 50]], dtype=np.float32)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def adapted(sam, before_neck=False, decoder=True):
    """A PeftModel with adapters "one" and "two" that change the masks."""
    targets = neck_targets(sam) + (["vision_encoder.layers.0.mlp.lin1"] if before_neck else [])
    saved = ["mask_decoder"] if decoder else None
    model = get_peft_model(sam, config(targets, saved), adapter_name="one")
    model.add_adapter("two", config(targets, saved))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def config(targets, saved):
    return LoraConfig(target_modules=targets, modules_to_save=saved, r=2, lora_dropout=0.5, init_lora_weights=False)


def one_box_at_a_time_with_transformers(model, processor, image, boxes):
    logits = []
    for box in boxes:
        inputs = processor(image, input_boxes=[[box.tolist()]], return_tensors="pt")
        with torch.no_grad():
            output = model(
                pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
            )
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        logits.append(processor.post_process_masks(output.pred_masks, *sizes, binarize=False)[0][0, 0])
    return torch.stack(logits)


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_logits_equal_one_box_at_a_time_through_transformers_processor(tiny_sam, tiny_processor, image, batch):
    expected = one_box_at_a_time_with_transformers(tiny_sam, tiny_processor, image, BOXES)
    logits = predict_logits(tiny_sam, tiny_processor, image, boxes=BOXES, batch=batch)
    assert logits.shape == (5, 60, 90)
    assert 0.02 < (expected > 0).float().mean() < 0.98  # a constant mask would pass everything here
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_masks_equal_the_binary_masks_of_transformers_processor(tiny_sam, tiny_processor, image):
    inputs = tiny_processor(image, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.no_grad():
        output = tiny_sam(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    expected = tiny_processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][:, 0]
    masks = predict(tiny_sam, tiny_processor, image, boxes=BOXES)
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, expected.numpy())


def test_points_equal_those_given_through_transformers_processor(tiny_sam, tiny_processor, image):
    points, labels = [[[20, 30], [50, 10]], [[70, 40], [5, 5]]], [[1, 0], [1, 1]]
    inputs = tiny_processor(image, input_points=[points], input_labels=[labels], return_tensors="pt")
    with torch.no_grad():
        output = tiny_sam(
            pixel_values=inputs["pixel_values"],
            input_points=inputs["input_points"].float(),
            input_labels=inputs["input_labels"],
            multimask_output=False,
        )
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    expected = tiny_processor.post_process_masks(output.pred_masks, *sizes, binarize=False)[0][:, 0]
    logits = predict_logits(tiny_sam, tiny_processor, image, points=points, labels=labels)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_objects_may_have_both_a_box_and_points(tiny_sam, tiny_processor, image):
    points = [[30, 20], [50, 30]]
    both = predict_logits(tiny_sam, tiny_processor, image, boxes=BOXES[:2], points=points)
    boxes = predict_logits(tiny_sam, tiny_processor, image, boxes=BOXES[:2])
    assert both.shape == boxes.shape
    assert not torch.allclose(both, boxes, atol=1e-3)


def test_masks_are_the_logits_above_the_threshold(tiny_sam, tiny_processor, image):
    logits = predict_logits(tiny_sam, tiny_processor, image, boxes=BOXES).numpy()
    level = float(np.median(logits))
    masks = predict(tiny_sam, tiny_processor, image, boxes=BOXES, threshold=level)
    assert np.array_equal(masks, logits > level)


def test_no_prompt_gives_no_mask(tiny_sam, tiny_processor, image):
    assert predict(tiny_sam, tiny_processor, image, boxes=[]).shape == (0, 60, 90)
    assert predict_logits(tiny_sam, tiny_processor, image, points=[]).shape == (0, 60, 90)
    assert to_original_size(torch.zeros(0, 16, 16), tiny_processor, (60, 90)).shape == (0, 60, 90)


def test_the_image_is_encoded_once_however_many_chunks_there_are(tiny_sam, tiny_processor, image):
    calls = []
    tiny_sam.vision_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    predict(tiny_sam, tiny_processor, image, boxes=BOXES, batch=1)
    assert len(calls) == 1


def test_half_precision_models_predict_in_float32(tiny_processor, image):
    model = make_tiny_sam().to(torch.bfloat16)
    logits = predict_logits(model, tiny_processor, image, boxes=BOXES)
    assert logits.dtype == torch.float32
    exact = predict_logits(make_tiny_sam(), tiny_processor, image, boxes=BOXES)
    assert (logits - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_half_precision_logits_are_resized_in_float32(tiny_processor):
    logits = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    resized = to_original_size(logits, tiny_processor, (60, 90))
    assert resized.dtype == torch.float32
    assert torch.equal(resized, to_original_size(logits.float(), tiny_processor, (60, 90)))


def test_a_model_in_training_mode_predicts_without_dropout_and_stays_in_training_mode(tiny_processor, image):
    model = adapted(make_tiny_sam())
    model.train()
    model.get_base_model().prompt_encoder.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert len(set(modes.values())) == 2
    first, second = (predict_logits(model, tiny_processor, image, boxes=BOXES) for _ in range(2))
    assert torch.equal(first, second)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not first.requires_grad


def test_a_peft_model_predicts_as_the_merged_model(tiny_processor, image):
    model = adapted(make_tiny_sam())
    base = predict_logits(make_tiny_sam(), tiny_processor, image, boxes=BOXES)
    tuned = predict_logits(model, tiny_processor, image, boxes=BOXES)
    merged = predict_logits(model.merge_and_unload(), tiny_processor, image, boxes=BOXES)
    assert not torch.allclose(base, tuned, atol=0.1)
    torch.testing.assert_close(tuned, merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before_neck", [False, True], ids=["neck", "transformer"])
def test_several_adapters_give_what_each_gives_alone_and_share_what_they_can(tiny_processor, image, before_neck):
    model = adapted(make_tiny_sam(), before_neck)
    model.set_adapter("two")
    required = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {}
    with model.disable_adapter():
        expected[None] = predict(model, tiny_processor, image, boxes=BOXES)
    for name in ("one", "two"):
        model.set_adapter(name)
        expected[name] = predict(model, tiny_processor, image, boxes=BOXES)
    calls = []
    model.get_base_model().vision_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))

    masks = predict(model, tiny_processor, image, boxes=BOXES, adapters=["one", None, "two"], batch=2)

    assert list(masks) == ["one", None, "two"]
    for name, mask in masks.items():
        assert np.array_equal(mask, expected[name]), name
    assert not np.array_equal(masks["one"], masks["two"])
    assert not np.array_equal(masks["one"], masks[None])
    assert len(calls) == (3 if before_neck else 1)
    assert model.active_adapters == ["two"]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == required


def test_an_error_in_the_middle_leaves_adapter_and_mode_as_they_were(tiny_processor, image, monkeypatch):
    model = adapted(make_tiny_sam())
    model.train()
    decoder = model.get_base_model().mask_decoder

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(model, tiny_processor, image, boxes=BOXES, adapters=["two"])
    assert model.active_adapters == ["one"]
    assert model.training


@pytest.mark.parametrize("call", [predict, predict_logits])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"Give boxes or points"),
        ({"boxes": BOXES / 100}, r"look normalised.*width 90.*height 60"),
        ({"boxes": BOXES * 2}, r"outside the image of 90 x 60"),
        ({"boxes": BOXES, "points": [[1, 2]]}, r"5 boxes and 1 objects with points"),
        ({"boxes": BOXES, "labels": [1] * 5}, r"labels say which points are on the object; give points"),
        ({"boxes": BOXES, "batch": 0}, r"batch must be 1 or more prompts at a time; got 0"),
    ],
)
def test_wrong_prompts_are_refused(tiny_sam, tiny_processor, image, call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_sam, tiny_processor, image, **arguments)


def test_wrong_models_and_adapters_are_refused(tiny_sam, tiny_processor, image):
    with pytest.raises(TypeError, match=r"needs a SamModel.*got a Linear"):
        predict(torch.nn.Linear(1, 1), tiny_processor, image, boxes=BOXES)
    with pytest.raises(TypeError, match=r"adapters=\['a'\] needs a PeftModel; got a SamModel"):
        predict(tiny_sam, tiny_processor, image, boxes=BOXES, adapters=["a"])
    model = adapted(tiny_sam)
    with pytest.raises(ValueError, match=r"No adapter 'three'; loaded are one, two"):
        predict(model, tiny_processor, image, boxes=BOXES, adapters=["one", "three"])
    with pytest.raises(ValueError, match=r"names one twice: \['one', 'one'\]"):
        predict(model, tiny_processor, image, boxes=BOXES, adapters=["one", "one"])


def test_one_image_answers_many_prompts_with_one_encoding_and_the_masks_of_predict(tiny_sam, tiny_processor, image):
    calls = []
    tiny_sam.vision_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    predictor = SamPredictor(tiny_sam, tiny_processor)
    predictor.set_image(image)
    boxes, points = predictor.predict(boxes=BOXES), predictor.predict(points=[[30, 20], [50, 10]], labels=[1, 0])
    both = predictor.predict(BOXES[:1], [[30, 20]], batch=1, threshold=0.5)
    logits = predictor.predict_logits(boxes=BOXES[:2])
    assert len(calls) == 1
    assert np.array_equal(boxes, predict(tiny_sam, tiny_processor, image, boxes=BOXES))
    assert np.array_equal(points, predict(tiny_sam, tiny_processor, image, points=[[30, 20], [50, 10]], labels=[1, 0]))
    assert np.array_equal(both, predict(tiny_sam, tiny_processor, image, BOXES[:1], [[30, 20]], threshold=0.5))
    assert torch.equal(logits, predict_logits(tiny_sam, tiny_processor, image, boxes=BOXES[:2]))


@pytest.mark.parametrize("before_neck", [False, True], ids=["neck", "transformer"])
def test_one_image_answers_under_any_adapter_with_the_masks_of_predict(tiny_processor, image, before_neck):
    model = adapted(make_tiny_sam(), before_neck)
    names = ["two", None, "one"]
    expected = predict(model, tiny_processor, image, boxes=BOXES, adapters=names)
    active = predict(model, tiny_processor, image, boxes=BOXES)
    calls = []
    model.get_base_model().vision_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    predictor = SamPredictor(model, tiny_processor)
    predictor.set_image(image)
    for _ in range(2):
        assert np.array_equal(predictor.predict(boxes=BOXES), active)
        for name, mask in predictor.predict(boxes=BOXES, adapters=names).items():
            assert np.array_equal(mask, expected[name]), name
    model.set_adapter("two")
    assert np.array_equal(predictor.predict(boxes=BOXES), expected["two"])
    assert before_neck or len(calls) == 1


def test_another_image_takes_the_place_of_the_first(tiny_sam, tiny_processor, image):
    predictor = SamPredictor(tiny_sam, tiny_processor)
    with pytest.raises(ValueError, match=r"no image yet: call set_image"):
        predictor.predict(boxes=BOXES)
    predictor.set_image(image)
    predictor.predict(boxes=BOXES)
    other = image[:50, ::-1].copy()
    predictor.set_image(other)
    assert np.array_equal(predictor.predict(boxes=BOXES[3:]), predict(tiny_sam, tiny_processor, other, boxes=BOXES[3:]))


def test_threads_that_predict_with_one_model_get_the_masks_of_one_at_a_time(tiny_processor):
    model = adapted(make_tiny_sam()).train()
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (50 + 5 * number, 70, 3), dtype=np.uint8) for number in range(4)]
    expected = [predict(model, tiny_processor, picture, boxes=BOXES[3:]) for picture in pictures]

    def work(number):
        return [predict(model, tiny_processor, pictures[number], boxes=BOXES[3:]) for _ in range(8)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    for mask, masks in zip(expected, found, strict=True):
        assert all(np.array_equal(each, mask) for each in masks)
    assert model.training
