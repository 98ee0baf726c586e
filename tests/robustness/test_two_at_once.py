"""Two processes or two threads at once: each gets what it would get alone, or one is told to wait."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from samparser.data import DataSettings, open_dataset
from samparser.features import FeatureCache
from samparser.methods import load_model
from samparser.prediction import predict
from samparser.training import evaluate
from tests.conftest import make_tiny_sam
from tests.robustness.lab import LONG, digests
from tests.robustness.scene import trained

# One process for the campaign: its scene and its lab take seconds to set up.
pytestmark = pytest.mark.xdist_group("robustness")


@pytest.fixture(scope="module")
def samples(scene):
    return open_dataset(DataSettings(data=str(scene.data)), "val")


def job(words):
    return {"arguments": list(words)}


def test_two_predictions_into_one_folder(lab, scene, tmp_path):
    alone = tmp_path / "out"
    _, expected = lab.undisturbed(tmp_path, scene.predict(alone), lambda: digests(alone))
    with lab.group("two processes: predict into one folder") as tally:
        for number in range(10 if LONG else 2):
            out = tmp_path / str(number)
            both = lab.together(job(scene.predict(out)), job(scene.predict(out)))
            fault = next((found for ran in both if (found := ran.fault())), None)
            fault = fault or (None if any(ran.status == 0 for ran in both) else "both refused")
            tally.add(str(number), fault or (None if digests(out) == expected else "other masks"))


def test_two_merges_into_one_folder(lab, scene, tmp_path):
    alone = tmp_path / "out"
    _, expected = lab.undisturbed(tmp_path, scene.merge(alone), lambda: digests(alone))
    with lab.group("two processes: merge into one folder") as tally:
        for number in range(10 if LONG else 2):
            out = tmp_path / str(number)
            both = lab.together(job(scene.merge(out)), job(scene.merge(out)))
            fault = next((found for ran in both if (found := ran.fault())), None)
            fault = fault or (None if any(ran.status == 0 for ran in both) else "both refused")
            tally.add(str(number), fault or (None if digests(out) == expected else "another model"))


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["new", "resume"])
def test_two_trainings_in_one_folder(lab, scene, tmp_path, more):
    alone = tmp_path / "out"
    _, expected = lab.undisturbed(tmp_path, scene.train(alone), lambda: trained(alone))
    with lab.group(f"two processes: train in one folder{' with --resume' if more else ''}") as tally:
        for number in range(10 if LONG else 1):
            out = tmp_path / str(number)
            both = lab.together(job(scene.train(out, *more)), job(scene.train(out, *more)))
            fault = next((found for ran in both if (found := ran.fault())), None)
            fault = fault or (None if any(ran.status == 0 for ran in both) else "both refused")
            tally.add(str(number), fault or (None if trained(out) == expected else "another run"))


def test_two_trainings_that_fill_one_cache(lab, scene, tmp_path):
    with lab.group("two processes: train from one cache") as tally:
        for number in range(10 if LONG else 1):
            runs = [tmp_path / f"{number}-{side}" for side in "ab"]
            cache = ("--cache", tmp_path / f"features-{number}")
            both = lab.together(*(job(scene.train(run, *cache)) for run in runs))
            fault = next((found for ran in both if (found := ran.fault((0,)))), None)
            tally.add(str(number), fault or (None if trained(runs[0]) == trained(runs[1]) else "two results"))


def in_threads(function, count=2):
    """Run a function of its thread's number in several threads; their results, or the first error."""
    results, errors = [None] * count, []
    barrier = threading.Barrier(count)

    def work(number):
        try:
            barrier.wait(30)
            results[number] = function(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def test_two_threads_that_predict_with_one_model(lab, scene, samples):
    model, processor = load_model(scene.adapter)
    alone = [predict(model, processor, sample.image, boxes=sample.boxes) for sample in samples]
    with lab.group("two threads: predict with one model") as tally:
        for round_ in range(20 if LONG else 4):
            found = in_threads(
                lambda number: [
                    predict(model, processor, samples[number].image, boxes=samples[number].boxes) for _ in range(4)
                ]
            )
            same = all(np.array_equal(mask, alone[number]) for number in (0, 1) for mask in found[number])
            tally.add(str(round_), None if same else "other masks")
    assert not model.training


def test_a_thread_that_predicts_while_another_one_scores(lab, samples, tiny_processor):
    model = make_tiny_sam()
    sample = samples[0]
    alone = predict(model, tiny_processor, sample.image, boxes=sample.boxes)
    table = evaluate(model, tiny_processor, samples, progress=False)

    def work(number):
        if number == 0:
            return evaluate(model, tiny_processor, samples, progress=False)
        return [predict(model, tiny_processor, sample.image, boxes=sample.boxes) for _ in range(12)]

    with lab.group("two threads: predict while evaluate scores") as tally:
        for round_ in range(20 if LONG else 2):
            scored, masks = in_threads(work)
            # The lean decoder rounds otherwise: a pixel whose logit is zero up to rounding may change sides.
            worst = max(float(np.mean(mask != alone)) for mask in masks)
            fault = None if worst < 1e-3 else f"{100 * worst:.1f} % of the pixels differ"
            tally.add(str(round_), fault or (None if abs(scored.miou - table.miou) < 1e-3 else "other scores"))


def test_two_threads_that_fill_one_cache(lab, samples, tiny_processor, tmp_path):
    images = [samples[number].image for number in range(2)]
    with lab.group("two threads: fill one cache") as tally:
        for round_ in range(10 if LONG else 2):
            cache = FeatureCache(tmp_path / str(round_), make_tiny_sam().requires_grad_(False), tiny_processor)
            one, other = in_threads(lambda _, cache=cache: [cache.features(image) for image in images])
            same = all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
            tally.add(str(round_), None if same else "two results")
