"""Full disks and folders that may not be written to: one message, old files whole, and a repetition that ends right."""

from __future__ import annotations

import pytest

from tests.robustness.lab import LONG, chosen, digests, emptied
from tests.robustness.scene import compared, scored, trained

# One process for the campaign: its scene and its lab take seconds to set up.
pytestmark = pytest.mark.xdist_group("robustness")


def verbs(scene, folder):
    """Each verb that writes: its words, how it is repeated, and what it comes to."""
    out = folder / "out"
    train = scene.train(out, "--cache", folder / "features")
    return {
        "train": (train, [*train, "--resume"], lambda: trained(out)),
        "predict": (scene.predict(out), scene.predict(out), lambda: digests(out)),
        "merge": (scene.merge(out), scene.merge(out), lambda: digests(out)),
        "evaluate": (scene.evaluate(out), scene.evaluate(out), lambda: scored(out)),
        "compare": (scene.compare(out), scene.compare(out), lambda: compared(out)),
        "data check": (
            ["data", "check", scene.data, "--contact_sheet", out / "sheet.png"],
            ["data", "check", scene.data, "--contact_sheet", out / "sheet.png"],
            lambda: digests(out),
        ),
    }


# How many places of a verb the short campaign strikes.
SHORT = {"train": 1, "predict": 2, "merge": 2, "evaluate": 1, "compare": 1, "data check": 1}


def judged(lab, ran, again, result, expected):
    """What is wrong with a verb that ran out of room, or with its repetition once there is room; or None."""
    if fault := ran.fault():
        return fault
    if ran.status == 0:
        # Where the room ran out, nothing more was to be written.
        return None if result() == expected else "status 0, not done"
    repeated = lab.run(*again)
    if repeated.status == 2 and "--overwrite" in repeated.output:
        repeated = lab.run(*again, "--overwrite")
    return repeated.fault((0,)) or (None if result() == expected else "another result when repeated")


@pytest.mark.parametrize("verb", SHORT)
def test_a_disk_that_fills_up_at_any_file(lab, scene, tmp_path, rng, verb):
    folder = tmp_path / "work"
    words, again, result = verbs(scene, folder)[verb]
    total, expected = lab.undisturbed(folder, words, result)
    with lab.group(f"disk full: {verb}") as tally:
        for at in chosen(total, SHORT[verb], rng):
            emptied(folder)
            ran = lab.run(*words, strike={"folder": str(folder), "kind": "full", "at": at})
            tally.add(f"at {at} of {total}", judged(lab, ran, again, result, expected))


@pytest.mark.parametrize("verb", ["train", "predict", "merge"])
def test_a_disk_that_fills_up_within_a_file(lab, scene, tmp_path, rng, verb):
    folder = tmp_path / "work"
    words, again, result = verbs(scene, folder)[verb]
    _, expected = lab.undisturbed(folder, words, result)
    limits = range(4000, 300_000, 4000)
    with lab.group(f"disk full within a file: {verb}") as tally:
        for size in limits if LONG else [rng.choice(limits[:10])]:
            emptied(folder)
            ran = lab.run(*words, file_bytes=size)
            tally.add(f"files of {size} bytes at most", judged(lab, ran, again, result, expected))


@pytest.mark.parametrize("verb", SHORT)
def test_a_folder_that_may_not_be_written_to(lab, scene, tmp_path, verb):
    folder = tmp_path / "work"
    words, *_ = verbs(scene, folder)[verb]
    folder.mkdir()
    with lab.group(f"read-only folder: {verb}") as tally:
        ran = lab.run(*words, strike={"folder": str(folder), "kind": "denied", "at": 0})
        fault = ran.fault((2,)) or (None if str(folder) in ran.output else "the folder is not named")
        tally.add(verb, fault or (None if not any(folder.rglob("*")) else "something was written"))


def test_a_full_disk_leaves_earlier_masks_whole(lab, scene, tmp_path, rng):
    out = tmp_path / "masks"
    total, _ = lab.undisturbed(out, scene.predict(out), lambda: digests(out))
    assert lab.run(*scene.predict(out)).status == 0
    before = digests(out, hidden=True)
    with lab.group("disk full: predict over earlier masks") as tally:
        for at in chosen(total, 2, rng):
            ran = lab.run(
                *scene.predict(out, model=scene.model),
                "--overwrite",
                strike={"folder": str(out), "kind": "full", "at": at},
            )
            left = digests(out, hidden=True)
            gone = [name for name in before if name not in left]
            # The list of its files, by which `predict` knows them again, may be there; no torn file may.
            extra = [name for name in left if name not in before and not name.endswith("predicted.jsonl")]
            tally.add(f"at {at} of {total}", ran.fault() or (f"gone {gone}, new {extra}" if gone or extra else None))
