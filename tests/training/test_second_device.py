"""Whole training runs on another device than the CPU, and how often a step waits for that device."""

import shutil

import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.prompts import PromptedDataset, PromptSettings, collate
from samparser.sam.lean import lean_decoder
from samparser.training import SamTrainer, TrainSettings, evaluate
from tests.conftest import make_tiny_sam
from tests.second_device import SecondDeviceTensor, watching
from tests.training.conftest import adapter_tensors

CHOICES = {
    "from images": {},
    "batches, expansion": {"per_device_train_batch_size": 2, "expansion_images": 2},
    "from features": {"cache": "features", "with_eval": True},
    "from projections": {"cache": "features", "cache_projected": True, "cache_dtype": "fp32"},
}


def is_stand_in(model):
    return isinstance(next(model.parameters()), SecondDeviceTensor)


def tuned(**fields):
    config = SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"], **fields)
    return get_peft_model(make_tiny_sam(), config)


@pytest.fixture
def on_cpu(monkeypatch):
    """Trains where the accelerator is not looked for."""

    def run(train, *args, **settings):
        return train(*args, use_cpu=True, **settings)

    return run


@pytest.mark.parametrize("choice", CHOICES)
def test_a_whole_run_is_that_of_the_cpu(gpu, run_tiny, tmp_path, monkeypatch, choice):
    settings = dict(CHOICES[choice])
    fields = {"expansion": "pairs", "expansion_rank": 4} if "expansion_images" in settings else {}
    cache = settings.pop("cache", None)

    def run(name, **more):
        model = tuned(**fields)
        more |= {"cache": str(tmp_path / f"{name} {cache}")} if cache else {}
        result, _ = run_tiny(name, model=model, max_steps=2, **settings, **more)
        return result, model

    with monkeypatch.context() as patch:
        patch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
        here, _ = run("here", use_cpu=True)
    there, model = run("there")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert there.steps == here.steps == 2
    expected, found = adapter_tensors(here), adapter_tensors(there)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    if here.scores is not None:
        assert there.scores.miou == pytest.approx(here.scores.miou, abs=1e-3)


def test_a_run_goes_on_from_a_checkpoint(gpu, run_tiny, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False}
    whole, _ = run_tiny("run", model=tuned(), **settings)
    expected = adapter_tensors(whole)
    # As a run that was killed after its second step leaves its folder.
    shutil.rmtree(whole.folder.checkpoints / "checkpoint-4")
    whole.folder.finished.unlink()
    again, model = run_tiny("run", model=tuned(), resume=True, **settings)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    for name, value in adapter_tensors(again).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def trainer(gpu, toy_sets, tiny_processor, tmp_path):
    """A trainer on the device, and a batch of two images of which the second has an instance less, on the CPU."""
    items = PromptedDataset(toy_sets[0], tiny_processor, PromptSettings(jitter_max=2, max_instances=None))
    one, two = items[0], items[1]
    two = {**two, "input_boxes": two["input_boxes"][:2], "masks": two["masks"][:2]}
    unscored = {"eval_strategy": "no", "load_best_model_at_end": False}
    settings = TrainSettings(output_dir=str(tmp_path / "run"), report_to="none", **unscored)
    trainer = SamTrainer(model=tuned().train(), args=settings, processor=tiny_processor, train_dataset=items)
    trainer.create_optimizer()
    return trainer, collate([one, two])


@pytest.mark.parametrize("resolution", ["input", "logits"])
def test_a_step_of_our_own_never_waits(trainer, resolution):
    trainer, batch = trainer
    trainer.args.loss_resolution = resolution
    if not is_stand_in(trainer.model):
        pytest.skip("A GPU is not watched.")

    def step():
        trainer.model.train()  # as transformers does before each step
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))).backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    with watching() as seen:
        step()
    # Of the first step, for both adapted layers: whether their bases make up their weight, and their numbers train.
    looks = ("tuner/weight_cache.py:holds", "tuner/training_loop.py:_trains_in_vain")
    assert seen.waits == {(place, "item"): 2 for place in looks}
    with watching() as seen, lean_decoder(trainer.model):
        step()
    assert not seen.waits
    sent = {what: count for (where, what), count in seen.sent.items() if where != "training/trainer.py:mask_logits"}
    # Pixels, boxes, masks, which instances and which pixels count, and in which rows prompts are.
    assert sent == {"to": 6}
    # Transformers makes the relative positions of the encoder's attention on the CPU, two for each of its two layers.
    assert seen.sent["training/trainer.py:mask_logits", "index"] == 4


def test_transformers_waits_twice_a_step_and_three_times_an_entry_of_the_log(gpu, run_tiny):
    counts = {}
    for steps, logging in ((1, 100), (3, 100), (3, 1)):
        with watching() as seen:
            _, model = run_tiny(f"{steps} {logging}", model=tuned(), max_steps=steps, logging_steps=logging)
        counts[steps, logging] = seen.waits.total()
    if not is_stand_in(model):
        pytest.skip("A GPU is not watched.")
    assert counts[3, 100] - counts[1, 100] == 2 * 2
    # Three entries instead of one, each with its loss, the norm of the gradients, and the parts of the loss.
    assert counts[3, 1] - counts[3, 100] == 3 * 2


def test_scores_are_those_of_the_cpu(gpu, toy_sets, tiny_processor):
    model = tuned()
    here = evaluate(model, tiny_processor, toy_sets[1], progress=False)
    there = evaluate(model.to(gpu), tiny_processor, toy_sets[1], progress=False)
    assert there.miou == pytest.approx(here.miou, abs=1e-3)
