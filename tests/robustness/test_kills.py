"""Kills at any file operation: what was begun goes on and ends bit-equal, and nothing visible is torn."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tests.robustness.lab import chosen, digests
from tests.robustness.scene import compared, trained

# One process for the campaign: its scene and its lab take seconds to set up.
pytestmark = pytest.mark.xdist_group("robustness")


def cases(total, short, rng, kinds=("kill", "tear")):
    """Which operation, and whether the file written last is torn as well."""
    return [(at, kind) for at in chosen(total, short, rng) for kind in kinds if short >= total or rng.random() < 2 / 3]


def struck(lab, folder, kind, at, arguments):
    return lab.run(*arguments, strike={"folder": str(folder), "kind": kind, "at": at})


def differences(expected, found):
    return None if found == expected else f"differs in {[key for key in expected if found.get(key) != expected[key]]}"


@pytest.mark.parametrize("cached", [False, True], ids=["", "cache"])
def test_a_killed_training_run_resumes_to_the_very_weights_scores_and_log(lab, scene, tmp_path, rng, cached):
    run = tmp_path / "run"
    arguments = scene.train(run, *(["--cache", tmp_path / "features"] if cached else []))
    total = lab.operations(tmp_path, *arguments)
    expected = trained(run)
    with lab.group("kills: train and resume" + (", filling a cache" if cached else "")) as tally:
        for at, kind in cases(total, 1 if cached else 3, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            case = f"{kind} at {at} of {total}"
            killed = struck(lab, tmp_path, kind, at, arguments)
            if killed.status != 137:
                tally.add(case, f"was not killed: {killed.status} {killed.output[-200:]}")
                continue
            again = lab.run(*arguments, "--resume")
            tally.add(case, again.fault((0,)) or differences(expected, trained(run)))


def test_a_killed_merge_leaves_nothing_or_the_whole(lab, scene, tmp_path, rng):
    out = tmp_path / "merged"
    total = lab.operations(tmp_path, *scene.merge(out))
    expected = digests(out)
    with lab.group("kills: merge") as tally:
        for at, kind in cases(total, 3, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            struck(lab, tmp_path, kind, at, scene.merge(out))
            case = f"{kind} at {at} of {total}"
            if out.exists() and any(out.iterdir()):
                tally.add(case, differences(expected, digests(out)))
            else:
                tally.add(case, lab.run(*scene.merge(out)).fault((0,)) or differences(expected, digests(out)))


def test_a_killed_prediction_leaves_whole_files_and_can_be_repeated(lab, scene, tmp_path, rng):
    out = tmp_path / "masks"
    total = lab.operations(tmp_path, *scene.predict(out))
    expected = digests(out)
    with lab.group("kills: predict") as tally:
        for at, kind in cases(total, 6, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            struck(lab, tmp_path, kind, at, scene.predict(out))
            left = digests(out)
            fault = (
                None if all(expected.get(name) == value for name, value in left.items()) else f"torn: {sorted(left)}"
            )
            again = lab.run(*scene.predict(out))
            if again.status == 2 and left:
                # What is there already is not written over without being asked.
                again = lab.run(*scene.predict(out), "--overwrite")
            tally.add(f"{kind} at {at} of {total}", fault or again.fault((0,)) or differences(expected, digests(out)))


def test_a_killed_comparison_goes_on_to_the_same_results(lab, scene, tmp_path, rng):
    out = tmp_path / "compared"
    total = lab.operations(tmp_path, *scene.compare(out))
    expected = compared(out)
    with lab.group("kills: compare") as tally:
        for at, kind in cases(total, 3, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            struck(lab, tmp_path, kind, at, scene.compare(out))
            again = lab.run(*scene.compare(out))
            tally.add(f"{kind} at {at} of {total}", again.fault((0,)) or differences(expected, compared(out)))


def test_a_killed_evaluation_leaves_whole_files_and_can_be_repeated(lab, scene, tmp_path, rng):
    out = tmp_path / "scores"
    total = lab.operations(tmp_path, *scene.evaluate(out))
    names = ("scores.csv", "scores.json")
    expected = {name: digests(out)[name] for name in names}
    with lab.group("kills: evaluate") as tally:
        for at, kind in cases(total, 3, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            struck(lab, tmp_path, kind, at, scene.evaluate(out))
            left = {name: value for name, value in digests(out).items() if name in names}
            fault = None if all(expected[name] == value for name, value in left.items()) else "torn"
            fault = fault or lab.run(*scene.evaluate(out)).fault((0,))
            now = {name: digests(out).get(name) for name in names}
            tally.add(f"{kind} at {at} of {total}", fault or differences(expected, now))


@pytest.mark.parametrize("kind", ["interrupt", "term"])
def test_an_interrupted_run_says_so_in_a_line_and_resumes(lab, scene, tmp_path, rng, kind):
    run = tmp_path / "run"
    total = lab.operations(tmp_path, *scene.train(run))
    expected = trained(run)
    with lab.group(f"kills: train and {'Ctrl-C' if kind == 'interrupt' else 'SIGTERM'}") as tally:
        for at in chosen(total, 1, rng):
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            ended = struck(lab, tmp_path, kind, at, scene.train(run))
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
