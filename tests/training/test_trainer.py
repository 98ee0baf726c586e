from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam import family_of
from samparser.scoring import segmentation_loss
from samparser.training import SamTrainer, TrainSettings
from samparser.training.trainer import batch_loss, mask_logits, parameter_groups


@pytest.fixture
def batch(toy_sets, tiny_processor):
    items = PromptedDataset(toy_sets[0], tiny_processor, PromptSettings(jitter_max=0, max_instances=None))
    one, two = items[0], items[1]
    # Unequal numbers of instances: the second image keeps two of its three.
    two = {**two, "input_boxes": two["input_boxes"][:2], "masks": two["masks"][:2]}
    return collate([one, two])


SETTINGS = TrainSettings()


def test_the_loss_is_a_mean_over_the_instances_of_an_image_then_over_images(tiny_sam, batch):
    with torch.no_grad():
        logits = mask_logits(tiny_sam, batch)
        assert logits.shape[:2] == (2, 3)
        got = batch_loss(logits, batch, SETTINGS).total
        up = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
        single = [
            segmentation_loss(
                up[i : i + 1, j : j + 1],
                batch["masks"][i : i + 1, j : j + 1],
                torch.ones(1, 1, dtype=torch.bool),
                batch["pixel_valid"][i : i + 1],
                lambda_focal=0.5,
            ).total
            for i, j in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        ]
    expected = (sum(single[:3]) / 3 + sum(single[3:]) / 2) / 2
    torch.testing.assert_close(got, expected)


def test_rows_that_pad_the_batch_do_not_count_whatever_they_hold(tiny_sam, batch):
    logits = mask_logits(tiny_sam, batch).detach()
    before = batch_loss(logits, batch, SETTINGS).total
    logits[1, 2] = float("nan")
    assert torch.equal(batch_loss(logits, batch, SETTINGS).total, before)


def test_the_loss_at_the_decoders_resolution_sees_smaller_masks(tiny_sam, batch):
    logits = mask_logits(tiny_sam, batch).detach()
    coarse = batch_loss(logits, batch, TrainSettings(loss_resolution="logits")).total
    fine = batch_loss(logits, batch, SETTINGS).total
    assert coarse.isfinite()
    assert coarse != fine
    assert coarse == pytest.approx(fine.item(), rel=0.1)


def test_coefficients_have_a_learning_rate_of_their_own(tiny_sam):
    model = get_peft_model(tiny_sam, SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))
    settings = TrainSettings(learning_rate=1e-4, coefficient_lr=1e-2)
    coefficients, rest = parameter_groups(model, settings)
    assert (coefficients["lr"], rest["lr"]) == (1e-2, 1e-4)
    assert [p.shape for p in coefficients["params"]] == [(24,), (32,)]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (coefficients, rest) for p in group["params"]} == trained


@pytest.mark.parametrize("parametrization", ["absolute", "relative", "offset"])
@pytest.mark.parametrize("recipe", ["own", "natural"])
def test_weight_decay_pulls_towards_the_start_but_in_the_recipes_of_the_paper(tiny_sam, parametrization, recipe):
    config = SVDCoefficientConfig(
        target_modules=["neck"], modules_to_save=["mask_decoder"], parametrization=parametrization
    )
    model = get_peft_model(tiny_sam, config)
    settings = TrainSettings(recipe=recipe, weight_decay=0.1, learning_rate=1e-4, coefficient_lr=1e-2)
    coefficients, others = parameter_groups(model, settings)
    assert others["weight_decay"] == 0.1
    assert coefficients["weight_decay"] == (0.0 if (recipe, parametrization) == ("own", "absolute") else 0.1)


def test_the_first_step_names_coefficients_that_got_no_gradient(tiny_sam, tiny_processor, tmp_path, batch):
    model = get_peft_model(tiny_sam, SVDCoefficientConfig(target_modules=["neck.conv2", "iou_prediction_head.proj_in"]))
    settings = TrainSettings(str(tmp_path), eval_strategy="no", report_to="none")
    trainer = SamTrainer(model=model, args=settings, processor=tiny_processor)
    optimizer = trainer.create_optimizer()
    trainer.compute_loss(model, batch).backward()
    with pytest.warns(UserWarning, match="coefficients of mask_decoder.iou_prediction_head.proj_in got no"):
        optimizer.step()


def test_a_model_without_coefficients_has_one_group(tiny_sam):
    (group,) = parameter_groups(tiny_sam, SETTINGS)
    assert len(group["params"]) == len(list(tiny_sam.parameters()))


@pytest.mark.parametrize(
    ("fields", "kind", "expected"),
    [
        ({"adam_beta2": 0.9}, torch.optim.Adam, {"betas": (0.9, 0.9), "weight_decay": 5e-5, "fused": True}),
        ({"optim": "adamw_torch"}, torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": 5e-5}),
        ({"optim": "sgd", "weight_decay": 0.5}, torch.optim.SGD, {"weight_decay": 0.5}),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_the_optimizer_is_the_one_that_was_asked_for(fields, kind, expected, tiny_sam, tiny_processor, tmp_path):
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"], parametrization="relative")
    model = get_peft_model(tiny_sam, config)
    settings = TrainSettings(
        str(tmp_path), learning_rate=1e-4, coefficient_lr=1e-2, eval_strategy="no", report_to="none", **fields
    )
    optimizer = SamTrainer(model=model, args=settings, processor=tiny_processor).create_optimizer()
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-4]
    for group in optimizer.param_groups:
        assert {name: group[name] for name in expected} == expected


@pytest.fixture
def trainer_of(tiny_processor, tmp_path):
    settings = TrainSettings(str(tmp_path), report_to="none", eval_strategy="no")
    return lambda model: SamTrainer(model=model, args=settings, processor=tiny_processor)


def test_what_is_frozen_before_the_neck_stays_in_eval_mode_while_the_rest_trains(tiny_sam, trainer_of, batch):
    model = get_peft_model(tiny_sam, SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"]))
    trainer = trainer_of(model)
    model.train()  # as transformers does before each step
    trainer.compute_loss(model, batch)
    encoder = tiny_sam.vision_encoder
    assert not any(module.training for part in (encoder.patch_embed, encoder.layers) for module in part.modules())
    assert all(module.training for part in (encoder.neck, tiny_sam.mask_decoder) for module in part.modules())


def test_an_encoder_that_trains_is_in_training_mode(tiny_sam, trainer_of, batch):
    model = get_peft_model(tiny_sam, LoraConfig(target_modules=["qkv"], r=2))
    trainer = trainer_of(model)
    model.train()
    trainer.compute_loss(model, batch)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("tuned", [True, False])
def test_a_tuned_model_is_scored_with_the_mask_that_was_trained_and_the_one_before_as_released(
    tiny_sam, trainer_of, toy_sets, monkeypatch, tuned
):
    inside, seen = [], []

    @contextmanager
    def single_mask(self, model):
        inside.append(model)
        yield
        inside.pop()

    monkeypatch.setattr(type(family_of(tiny_sam)), "single_mask", single_mask)
    tiny_sam.mask_decoder.register_forward_pre_hook(lambda *_: seen.append(list(inside)))
    trainer_of(tiny_sam).score(toy_sets[1], limit=1, tuned=tuned)
    assert seen == [[tiny_sam] if tuned else []]
