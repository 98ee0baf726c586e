"""The data pass of an expansion before training."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model

from samparser import SVDCoefficientConfig, initialize_expansion
from samparser.methods import build
from samparser.prompts import PromptedDataset, collate
from samparser.training import RunFolderError, TrainSettings, choosing_terms
from samparser.training.choosing_terms import choose_terms, keep_choice
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


def test_a_resumed_run_keeps_the_pairs_that_it_began_with_whatever_a_second_pass_gives(run_tiny):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "expansion_images": 4}
    result, _ = run_tiny(model=expanded(), **fields)
    kept = json.loads(result.folder.expansion.read_text())
    began_with = [[0, 1], [1, 0], [2, 1], [3, 1], [4, 1]]
    assert kept["pairs"]["vision_encoder.neck.conv1"] != began_with
    kept["pairs"]["vision_encoder.neck.conv1"] = began_with
    result.folder.expansion.write_text(json.dumps(kept))
    _, model = run_tiny(model=expanded(), resume=True, **fields)
    assert {name: terms.pairs.tolist() for name, terms in expansion_terms(model).items()} == kept["pairs"]
    saved = json.loads((result.folder.adapter / "adapter_config.json").read_text())["expansion_record"]
    assert saved["vision_encoder.neck.conv1"]["pairs"] == "0,1 1,0 2,1 3,1 4,1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pairs: pairs.pop("vision_encoder.neck.conv2"), "but the terms are in vision_encoder.neck.conv1, vis"),
        (lambda pairs: pairs["vision_encoder.neck.conv1"].pop(), r"conv1 has 5 pairs of bases, and 4 are given"),
        (lambda pairs: pairs["vision_encoder.neck.conv1"][0].__setitem__(0, 24), "conv1 has 24 bases, counted from 0"),
        (lambda pairs: pairs.update({"vision_encoder.neck.conv1": [["x"]]}), "fit this model"),
    ],
    ids=["layers", "count", "index", "damaged"],
)
def test_a_run_that_began_with_terms_that_do_not_fit_is_not_resumed(run_tiny, change, message):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "expansion_images": 4}
    result, _ = run_tiny(model=expanded(), **fields)
    kept = json.loads(result.folder.expansion.read_text())
    change(kept["pairs"])
    result.folder.expansion.write_text(json.dumps(kept))
    with pytest.raises(RunFolderError, match=rf"expansion\.json says which terms .*{message}.*start again with --over"):
        run_tiny(model=expanded(), resume=True, **fields)


def test_every_process_takes_the_pairs_of_the_first(prompted, tmp_path, monkeypatch):
    settings = TrainSettings(str(tmp_path), expansion_images=4, report_to="none")
    model = expanded()
    choice = choose_terms(model, prompted, settings)
    # What the first process sends: it chose the same pairs in another order.
    monkeypatch.setattr(choosing_terms, "broadcast", lambda pairs: pairs.flip(0))
    keep_choice(model, None, choice, resume=False, show=True)
    assert {name: terms.pairs.tolist() for name, terms in expansion_terms(model).items()} == {
        name: pairs[::-1] for name, pairs in choice.pairs.items()
    }


def test_a_single_image_chooses_and_measures_with_other_prompts_and_that_is_said(
    prompted, toy_sets, tiny_processor, tmp_path
):
    settings = TrainSettings(str(tmp_path), seed=3, report_to="none")
    one = PromptedDataset([toy_sets[0][0]], tiny_processor, PROMPTS, seed=3)
    model, other = expanded("gradient"), expanded("gradient")
    choice = choose_terms(model, one, settings)
    batches = []
    for epoch in (0, 1):
        one.set_epoch(epoch)
        batches.append(collate([one[0]]))
    assert not torch.equal(batches[0]["input_boxes"], batches[1]["input_boxes"])
    report = initialize_expansion(
        other, batches, lambda net, batch: batch_loss(mask_logits(net, batch), batch, settings).total, show=False
    )
    assert choice.report == report
    assert str(choice).endswith("The same image, with other prompts: these shares say nothing of other images.")
    assert "same image" not in str(choose_terms(expanded(), prompted, settings))


def test_the_epoch_is_as_before_also_after_a_pass_that_fails(toy_sets, tiny_processor, tmp_path):
    prompted = PromptedDataset([toy_sets[0][0]], tiny_processor, PROMPTS)
    prompted.set_epoch(7)
    settings = TrainSettings(str(tmp_path), report_to="none")
    choose_terms(expanded(), prompted, settings)
    assert prompted.epoch == 7
    with pytest.raises(ValueError, match="allows 552 terms"):
        choose_terms(expanded(rank=553), prompted, settings)
    assert prompted.epoch == 7


def test_too_many_terms_are_refused_before_anything_is_written(run_tiny, tmp_path):
    for kind, most in (("pairs", 24 * 23), ("gradient", 24), ("random", 24)):
        message = rf"to have {most + 1} terms in each layer, but vision_encoder.neck.conv1 allows {most} of the kind"
        with pytest.raises(ValueError, match=f"{message} '{kind}' at most"):
            run_tiny(model=expanded(kind, most + 1))
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_name_gets_its_terms_and_trains_beside_a_decoder(run_tiny):
    config = SVDCoefficientConfig(
        target_modules=["neck"], expansion="pairs", expansion_rank=5, modules_to_save=["mask_decoder"]
    )
    result, model = run_tiny(model=get_peft_model(make_tiny_sam(), config, adapter_name="mine"), max_steps=2)
    assert not awaited_terms(model, "mine")
    assert all(terms.change.abs().min() > 0 for terms in expansion_terms(model, "mine").values())
    assert result.folder.expansion.is_file()


def test_terms_are_chosen_in_full_precision_whatever_precision_trains(run_tiny):
    chosen = []
    for name, precision in (("full", {}), ("half", {"bf16": True})):
        result, _ = run_tiny(name, model=expanded(), max_steps=1, expansion_images=4, **precision)
        chosen.append(json.loads(result.folder.expansion.read_text()))
    assert chosen[0] == chosen[1]


def test_terms_in_the_attention_layers_are_chosen_from_pixels(run_tiny):
    model = build("attention", make_tiny_sam(), blocks=1, expansion="pairs", expansion_rank=3, coefficients=False)
    result, _ = run_tiny(model=model, max_steps=2, expansion_images=2)
    assert {name: tensor.shape for name, tensor in adapter_tensors(result).items()} == {
        f"base_model.model.vision_encoder.layers.1.attn.{part}.svd_coefficient_c": (3,) for part in ("qkv", "proj")
    }


def test_a_limit_of_one_image_and_a_projected_cache_are_refused(run_tiny, toy_sets, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match="expansion_images is 1"):
        TrainSettings(str(tmp_path), expansion_images=1)
    with pytest.raises(ValueError, match="directions of an expansion are chosen by what comes before"):
        run_tiny(model=expanded(), cache=str(tmp_path / "features"), cache_projected=True)
