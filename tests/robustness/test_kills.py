"""Kills at any file operation: what was begun goes on and ends bit-equal, and nothing visible is torn."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tests.robustness.lab import LONG, chosen, digests, emptied
from tests.robustness.scene import compared, scored, trained

# One process for the campaign: its scene and its lab take seconds to set up.
pytestmark = pytest.mark.xdist_group("robustness")


def cases(total, short, rng):
    """Which operation, and whether the file that was written last is torn as well: all in the long campaign."""
    every = [(at, kind) for at in range(total) for kind in ("kill", "tear")]
    return every if LONG or len(every) <= short else sorted(rng.sample(every, short))


def struck(lab, folder, kind, at, words):
    return lab.run(*words, strike={"folder": str(folder), "kind": kind, "at": at})


def differences(expected, found):
    return None if found == expected else f"differs in {[key for key in expected if found.get(key) != expected[key]]}"


@pytest.mark.parametrize("cached", [False, True], ids=["", "cache"])
def test_a_killed_training_run_resumes_to_the_very_weights_scores_and_log(lab, scene, tmp_path, rng, cached):
    work = tmp_path / "work"
    run = work / "out"
    arguments = scene.train(run, *(["--cache", work / "features"] if cached else []))
    total, expected = lab.undisturbed(work, arguments, lambda: trained(run))
    with lab.group("kills: train and resume" + (", filling a cache" if cached else "")) as tally:
        for at, kind in cases(total, 1 if cached else 2, rng):
            emptied(work)
            case = f"{kind} at {at} of {total}"
            killed = struck(lab, work, kind, at, arguments)
            if killed.status != 137:
                tally.add(case, f"was not killed: {killed.status} {killed.output[-200:]}")
                continue
            again = lab.run(*arguments, "--resume")
            tally.add(case, again.fault((0,)) or differences(expected, trained(run)))


def test_a_killed_merge_leaves_nothing_or_the_whole(lab, scene, tmp_path, rng):
    work = tmp_path / "work"
    out = work / "out"
    total, expected = lab.undisturbed(work, scene.merge(out), lambda: digests(out))
    with lab.group("kills: merge") as tally:
        for at, kind in cases(total, 2, rng):
            emptied(work)
            struck(lab, work, kind, at, scene.merge(out))
            case = f"{kind} at {at} of {total}"
            if out.exists() and any(out.iterdir()):
                tally.add(case, differences(expected, digests(out)))
            else:
                tally.add(case, lab.run(*scene.merge(out)).fault((0,)) or differences(expected, digests(out)))


def test_a_killed_prediction_leaves_whole_files_and_can_be_repeated(lab, scene, tmp_path, rng):
    work = tmp_path / "work"
    out = work / "out"
    total, expected = lab.undisturbed(work, scene.predict(out), lambda: digests(out))
    with lab.group("kills: predict") as tally:
        for at, kind in cases(total, 4, rng):
            emptied(work)
            struck(lab, work, kind, at, scene.predict(out))
            left = digests(out)
            torn = [name for name in left if left[name] != expected.get(name)]
            fault = f"torn: {torn}" if torn else None
            again = lab.run(*scene.predict(out))
            if again.status == 2 and left:
                # What is there already is not written over without being asked.
                again = lab.run(*scene.predict(out), "--overwrite")
            tally.add(f"{kind} at {at} of {total}", fault or again.fault((0,)) or differences(expected, digests(out)))


def test_a_killed_comparison_goes_on_to_the_same_results(lab, scene, tmp_path, rng):
    work = tmp_path / "work"
    out = work / "out"
    total, expected = lab.undisturbed(work, scene.compare(out), lambda: compared(out))
    with lab.group("kills: compare") as tally:
        for at, kind in cases(total, 2, rng):
            emptied(work)
            struck(lab, work, kind, at, scene.compare(out))
            again = lab.run(*scene.compare(out))
            tally.add(f"{kind} at {at} of {total}", again.fault((0,)) or differences(expected, compared(out)))


def test_a_killed_evaluation_leaves_whole_files_and_can_be_repeated(lab, scene, tmp_path, rng):
    work = tmp_path / "work"
    out = work / "out"
    total, expected = lab.undisturbed(work, scene.evaluate(out), lambda: scored(out))
    with lab.group("kills: evaluate") as tally:
        for at, kind in cases(total, 2, rng):
            emptied(work)
            struck(lab, work, kind, at, scene.evaluate(out))
            left = scored(out)
            fault = None if all(left[name] in (None, expected[name]) for name in left) else "torn"
            fault = fault or lab.run(*scene.evaluate(out)).fault((0,))
            tally.add(f"{kind} at {at} of {total}", fault or differences(expected, scored(out)))


@pytest.mark.parametrize("kind", ["interrupt", "term"])
def test_an_interrupted_run_says_so_in_a_line_and_resumes(lab, scene, tmp_path, rng, kind):
    work = tmp_path / "work"
    run = work / "out"
    total, expected = lab.undisturbed(work, scene.train(run), lambda: trained(run))
    with lab.group(f"kills: train and {'Ctrl-C' if kind == 'interrupt' else 'SIGTERM'}") as tally:
        for at in chosen(total, 1, rng):
            emptied(work)
            ended = struck(lab, work, kind, at, scene.train(run))
            fault = "traceback" if "Traceback" in ended.output else None
            fault = fault or (
                None if ended.status != 0 or run.joinpath("finished.json").exists() else "status 0, not done"
            )
            again = lab.run(*scene.train(run), "--resume")
            tally.add(f"{at} of {total}", fault or again.fault((0,)) or differences(expected, trained(run)))


def test_what_a_killed_writer_leaves_is_not_taken_for_an_image(lab, scene, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(scene.root / "images", images)
    out = images / "masks-of-it"
    arguments = ["predict", scene.adapter, images, "--output", tmp_path / "out", "--boxes", scene.root / "boxes.json"]
    assert lab.run(*arguments).status == 0
    expected = digests(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with lab.group("kills: leftovers beside images") as tally:
        Image.open(images / "train-000.png").save(images / ".train-000.0123456789abcdef.tmp.png")
        (images / ".train-001.fedcba9876543210.tmp.png").write_bytes(b"\x89PNG half")
        ran = lab.run(*arguments)
        tally.add("predict", ran.fault((0,)) or differences(expected, digests(tmp_path / "out")))
    assert not out.exists()
    assert json.loads((tmp_path / "out" / "masks.json").read_text())["images"]
