"""Damaged files: no traceback, no user file changed, and no other result in silence where that was promised."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.robustness.lab import LONG, copied, digests
from tests.robustness.mutants import mutants
from tests.robustness.scene import trained, write_volumes

# One process for the campaign: its scene and its lab take seconds to set up.
pytestmark = pytest.mark.xdist_group("robustness")


def damage(lab, tally, folder, files, rng, count, run, *, flips=True, result=None, allowed=(0, 2)):
    """Damage one file after another, run a verb on each mutant, and put the file back.

    Args:
        lab: Runs the verb.
        tally: Counts.
        folder: What the verb reads; nothing in it may change.
        files: The files to damage, relative to it.
        rng: Source of the randomness.
        count: Mutants of each file in the long campaign, and of all files together in the short one.
        run: Runs the verb and returns how it ended.
        flips: Whether bits are flipped too.
        result: Reads the result of the verb, if another one must not come out without a word; the first, of the whole
            files, is what it has to be.
        allowed: Exit statuses.
    """
    expected = None
    if result is not None:
        ran = run()
        assert ran.status == 0, ran.output
        expected = result()
    chosen = list(files) * count if LONG else [rng.choice(files) for _ in range(count)]
    for name in chosen:
        path = folder / name
        content = path.read_bytes()
        ((case, make),) = mutants(path, random.Random(rng.random()), 1, flips=flips)
        make()
        before = digests(folder, hidden=True)
        try:
            ran = run()
            fault = ran.fault(allowed)
            if fault is None and digests(folder, hidden=True) != before:
                fault = "a file that is only read was changed"
            if fault is None and ran.status == 0 and result is not None and "arn" not in ran.output:
                fault = None if result() == expected else "another result, and nothing said"
            tally.add(f"{Path(name).parent}: {case}", fault)
        finally:
            if path.is_dir():
                shutil.rmtree(path)
            path.write_bytes(content)


def test_damaged_adapters(lab, scene, tmp_path, rng):
    adapter, out = copied(scene.adapter, tmp_path / "adapter"), tmp_path / "masks"

    def predict():
        shutil.rmtree(out, ignore_errors=True)
        return lab.run(*scene.predict(out, model=adapter))

    with lab.group("damage: adapter weights, predict") as tally:
        damage(
            lab, tally, adapter, ["adapter_model.safetensors"], rng, 60 if LONG else 6, predict,
            result=lambda: digests(out),
        )  # fmt: skip
    with lab.group("damage: adapter_config.json, predict") as tally:
        damage(lab, tally, adapter, ["adapter_config.json"], rng, 200 if LONG else 8, predict)


def test_damaged_base_models(lab, scene, tmp_path, rng):
    model = copied(scene.model, tmp_path / "model")
    files = [path.name for path in model.iterdir() if path.suffix in (".json", ".safetensors")]

    def predict():
        shutil.rmtree(tmp_path / "masks", ignore_errors=True)
        return lab.run(*scene.predict(tmp_path / "masks", model=model))

    with lab.group("damage: base model, predict") as tally:
        damage(lab, tally, model, files, rng, 40 if LONG else 6, predict)


@pytest.mark.parametrize("verb", ["check", "evaluate"])
def test_damaged_annotations_and_images(lab, scene, tmp_path, rng, verb):
    data = copied(scene.data, tmp_path / "data")
    files = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*")) if path.is_file()]
    files += [name for name in files if name.endswith(".json")] * 3

    def run():
        if verb == "check":
            return lab.run("data", "check", data, "--contact_sheet", tmp_path / "sheet.png")
        return lab.run(*scene.evaluate(tmp_path / "scores", model=scene.model, data=data))

    with lab.group(f"damage: COCO data, {'data check' if verb == 'check' else verb}") as tally:
        damage(lab, tally, data, files, rng, 20 if LONG else 6, run, allowed=(0, 1, 2) if verb == "check" else (0, 2))


def test_damaged_folders_of_masks(lab, scene, tmp_path, rng):
    data = tmp_path / "data"
    for folder in ("images", "masks"):
        shutil.copytree(scene.root / "images", data / folder)
    files = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
    with lab.group("damage: images and masks, data check") as tally:
        damage(
            lab, tally, data, files, rng, 20 if LONG else 4,
            lambda: lab.run("data", "check", data, "--contact_sheet", "none"), allowed=(0, 1, 2),
        )  # fmt: skip


def test_damaged_volumes(lab, tmp_path, rng):
    pytest.importorskip("nibabel", reason="the medical extra is not installed")
    data = write_volumes(tmp_path / "ct")
    files = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.nii.gz"))]
    # Compressed files notice most flips by themselves; in plain ones they reach the header and the values.
    import gzip

    plain = copied(data, tmp_path / "plain")
    for path in sorted(plain.rglob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    with lab.group("damage: NIfTI volumes, data check") as tally:
        for folder, names in ((data, files), (plain, [name.removesuffix(".gz") for name in files])):
            words = ("data", "check", folder, "--min_area", 5, "--contact_sheet", "none")
            count = 40 if LONG else 4
            damage(lab, tally, folder, names, rng, count, lambda words=words: lab.run(*words), allowed=(0, 1, 2))


def test_damaged_prompt_files(lab, scene, tmp_path, rng):
    (tmp_path / "prompts").mkdir()
    boxes = tmp_path / "prompts" / "boxes.json"
    shutil.copy(scene.root / "boxes.json", boxes)
    with lab.group("damage: boxes.json, predict") as tally:
        damage(
            lab, tally, boxes.parent, ["boxes.json"], rng, 100 if LONG else 8,
            lambda: lab.run(*scene.predict(tmp_path / "masks", model=scene.model, boxes=boxes)),
        )  # fmt: skip


def test_damaged_experiments_and_their_results(lab, scene, tmp_path, rng):
    (tmp_path / "experiments").mkdir()
    experiment, out = tmp_path / "experiments" / "experiment.json", tmp_path / "out"
    shutil.copy(scene.root / "experiment.json", experiment)
    assert lab.run(*scene.compare(out, experiment)).status == 0
    whole = copied(out, tmp_path / "whole")
    with lab.group("damage: experiment file, compare") as tally:
        damage(
            lab, tally, experiment.parent, ["experiment.json"], rng, 100 if LONG else 6,
            lambda: lab.run(*scene.compare(tmp_path / "other", experiment), "--rows", "zero-shot"),
        )  # fmt: skip
    results = sorted(path.relative_to(out).as_posix() for path in (out / "results").glob("*.json"))
    with lab.group("damage: result files, compare") as tally:
        for name in results * 20 if LONG else [rng.choice(results) for _ in range(3)]:
            copied(whole, out)
            ((case, make),) = mutants(out / name, rng, 1)
            make()
            # Numbers in a result file carry no hash: which ones come out is not looked at.
            tally.add(case, lab.run(*scene.compare(out, experiment)).fault())


def test_damaged_runs_and_checkpoints(lab, scene, tmp_path, rng):
    run = tmp_path / "run"
    ran = lab.run(*scene.train(run))
    assert ran.status == 0, ran.output
    expected = trained(run)
    # As a kill leaves it between the last checkpoint and the end.
    for name in ("adapter", "figures"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("scores.json", "scores.csv", "finished.json"):
        (run / name).unlink(missing_ok=True)
    whole = copied(run, tmp_path / "whole")
    files = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    files = [name for name in files if not name.startswith("environment")]
    with lab.group("damage: run folder and checkpoints, train --resume") as tally:
        for name in files * 20 if LONG else [rng.choice(files) for _ in range(5)]:
            copied(whole, run)
            ((case, make),) = mutants(run / name, rng, 1)
            make()
            ran = lab.run(*scene.train(run, "--resume"))
            fault = ran.fault()
            if fault is None and ran.status == 0 and trained(run) != expected and not _told(ran.output):
                fault = "another result, and nothing said"
            tally.add(f"{Path(name).parent}: {case}", fault)


def test_damaged_cache_entries(lab, scene, tmp_path, rng):
    cache, run = tmp_path / "features", tmp_path / "run"

    def train():
        shutil.rmtree(run, ignore_errors=True)
        return lab.run(*scene.train(run, "--cache", cache))

    assert train().status == 0
    expected, whole = trained(run), copied(cache, tmp_path / "whole")
    files = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())
    with lab.group("damage: cached features, train --cache") as tally:
        for name in files * 20 if LONG else [rng.choice(files) for _ in range(3)]:
            copied(whole, cache)
            ((case, make),) = mutants(cache / name, rng, 1)
            make()
            ran = train()
            fault = ran.fault()
            if fault is None and ran.status == 0 and trained(run) != expected:
                fault = "another result"
            tally.add(case, fault)


def _told(output: str) -> bool:
    return any(word in output for word in ("arning", "damaged", "does not match", "left out"))
