"""The data pass of an expansion before training."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model

from samparser import SVDCoefficientConfig, initialize_expansion
from samparser.methods import build
from samparser.prompts import PromptedDataset, collate
from samparser.training import RunFolderError, TrainSettings
from samparser.training.choosing_terms import choose_terms
from samparser.training.trainer import batch_loss, mask_logits
from samparser.tuner import awaited_terms, expansion_terms

from ..conftest import make_tiny_sam
from .conftest import PROMPTS, adapter_tensors


def expanded(kind="pairs", rank=5, **fields):
    config = SVDCoefficientConfig(target_modules=["neck"], expansion=kind, expansion_rank=rank, **fields)
    return get_peft_model(make_tiny_sam(), config)


@pytest.fixture
def prompted(toy_sets, tiny_processor):
    return PromptedDataset(toy_sets[0], tiny_processor, PROMPTS, seed=3)


@pytest.mark.parametrize("kind", ["pairs", "gradient"])
def test_terms_are_those_of_a_pass_by_hand_over_the_images_that_the_seed_draws(kind, prompted, tmp_path):
    settings = TrainSettings(str(tmp_path), seed=3, expansion_images=4, report_to="none")
    model, other = expanded(kind), expanded(kind)
    choice = choose_terms(model, prompted, settings)
    drawn = np.random.default_rng([3, 5]).permutation(len(prompted))[:4]
    batches = [collate([prompted[int(index)]]) for index in drawn]
    report = initialize_expansion(
        other, batches, lambda net, batch: batch_loss(mask_logits(net, batch), batch, settings).total, show=False
    )
    assert choice.report == report
    assert (report.chosen_on, report.held_out) == (2, 2)
    mine, theirs = expansion_terms(model), expansion_terms(other)
    assert mine.keys() == theirs.keys() == {f"vision_encoder.neck.conv{i}" for i in (1, 2)}
    for name, terms in mine.items():
        assert len(terms.change) == 5
        assert torch.equal(terms.left, theirs[name].left)
        assert torch.equal(terms.right, theirs[name].right)
    assert choice.pairs.keys() == mine.keys()
    assert not awaited_terms(model)
    assert choose_terms(model, prompted, settings) is None


def test_a_run_chooses_trains_and_saves_and_its_folder_says_what_the_numbers_see(run_tiny, capsys):
    result, model = run_tiny(model=expanded(), max_steps=3, expansion_images=4)
    tensors = adapter_tensors(result)
    assert {name.rpartition(".")[2] for name in tensors} == {"svd_coefficient_p", "svd_coefficient_c"}
    assert all(tensor.abs().min() > 0 for name, tensor in tensors.items() if name.endswith("_c"))
    kept = json.loads(result.folder.expansion.read_text())
    assert [layer["terms"] for layer in kept["report"]["layers"]] == [5, 5]
    assert kept["report"]["total"]["numbers"] == sum(tensor.numel() for tensor in tensors.values())
    assert {name: len(pairs) for name, pairs in kept["pairs"].items()} == dict.fromkeys(expansion_terms(model), 5)
    assert "share of the gradient's signal" in capsys.readouterr().out
    loaded = expansion_terms(PeftModel.from_pretrained(make_tiny_sam(), result.folder.adapter))
    for name, terms in expansion_terms(model).items():
        assert torch.equal(loaded[name].change, terms.change)
        assert torch.equal(loaded[name].pairs, terms.pairs)


def test_directions_from_the_cache_are_those_from_pixels(run_tiny, tmp_path):
    fields = {"max_steps": 1, "expansion_images": 4}
    pixels, _ = run_tiny("pixels", model=expanded("gradient"), **fields)
    cached, _ = run_tiny(
        "cached", model=expanded("gradient"), cache=str(tmp_path / "features"), cache_dtype="fp32", **fields
    )
    expected, got = adapter_tensors(pixels), adapter_tensors(cached)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_chooses_again_what_it_chose_and_equals_an_uninterrupted_one(run_tiny):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "expansion_images": 4}
    whole, _ = run_tiny("whole", model=expanded("gradient"), max_steps=4, **fields)
    run_tiny("cut", model=expanded("gradient"), max_steps=2, **fields)
    for name in ("settings.json",):  # as that of the longer run, which was killed after two steps
        (whole.folder.path.parent / "cut" / name).write_text(whole.folder.settings.read_text())
    resumed, _ = run_tiny("cut", model=expanded("gradient"), max_steps=4, resume=True, **fields)
    expected, got = adapter_tensors(whole), adapter_tensors(resumed)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_run_that_chose_other_directions_when_it_began_is_not_resumed(run_tiny):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "expansion_images": 4}
    result, _ = run_tiny(model=expanded(), **fields)
    kept = json.loads(result.folder.expansion.read_text())
    kept["pairs"]["vision_encoder.neck.conv1"] = [[0, 1], [1, 0], [2, 1], [3, 1], [4, 1]]
    result.folder.expansion.write_text(json.dumps(kept))
    with pytest.raises(RunFolderError, match=r"chosen otherwise when this run began.*start again with --overwrite"):
        run_tiny(model=expanded(), resume=True, **fields)


def test_terms_in_the_attention_layers_are_chosen_from_pixels(run_tiny):
    model = build("attention", make_tiny_sam(), blocks=1, expansion="pairs", expansion_rank=3, coefficients=False)
    result, _ = run_tiny(model=model, max_steps=2, expansion_images=2)
    assert {name: tensor.shape for name, tensor in adapter_tensors(result).items()} == {
        f"base_model.model.vision_encoder.layers.1.attn.{part}.svd_coefficient_c": (3,) for part in ("qkv", "proj")
    }


def test_a_single_image_and_a_projected_cache_are_refused(run_tiny, toy_sets, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match="expansion_images is 1"):
        TrainSettings(str(tmp_path), expansion_images=1)
    with pytest.raises(ValueError, match="directions of an expansion are chosen by what comes before"):
        run_tiny(model=expanded(), cache=str(tmp_path / "features"), cache_projected=True)
