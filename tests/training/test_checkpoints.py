import json

import pytest

from samparser.training.checkpoints import COMPLETE, damage, last_whole, mark_complete, set_aside


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 4, 8 and 12; that of step 4 has the best score."""
    for step in (4, 8, 12):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "sub").mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_global_step": 4}))
        for name in ("optimizer.pt", "scheduler.pt", "sub/adapter_model.safetensors"):
            (checkpoint / name).write_bytes(bytes(100))
        mark_complete(checkpoint)
    return tmp_path


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)


DAMAGES = [
    (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    (lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
    (lambda folder: (folder / "optimizer.pt").write_bytes(bytes(40)), "optimizer.pt has 40 bytes instead of 100"),
    (lambda folder: flip_a_bit(folder / "optimizer.pt"), "the content of optimizer.pt has changed"),
    (
        lambda folder: flip_a_bit(folder / "sub" / "adapter_model.safetensors"),
        "the content of sub/adapter_model.safetensors has changed",
    ),
    (lambda folder: (folder / COMPLETE).write_text(""), "the list of its files, complete, cannot be read"),
    (lambda folder: (folder / COMPLETE).write_text("[]"), "the list of its files, complete, cannot be read"),
    (lambda folder: (folder / COMPLETE).write_text("null"), "the list of its files, complete, cannot be read"),
    (lambda folder: (folder / COMPLETE).write_text('{"files": 3}'), "cannot be read"),
    (lambda folder: (folder / COMPLETE).write_text('{"files": {}}'), "lacks trainer_state.json"),
]


@pytest.mark.parametrize(("spoil", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(folder, spoil, said):
    assert damage(folder / "checkpoint-12") is None
    spoil(folder / "checkpoint-12")
    assert said in damage(folder / "checkpoint-12")
    with pytest.warns(UserWarning, match=r"checkpoint-12 is damaged: .*\. The run goes on from the one before"):
        assert last_whole(folder, warn=True) == folder / "checkpoint-8"


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over_where_the_best_is_needed(folder):
    (folder / "checkpoint-4" / "sub" / "adapter_model.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"it needs checkpoint-4, which has the best score, and of that sub/adapter"):
        assert last_whole(folder, needs_best=True, warn=True) is None
    assert last_whole(folder) == folder / "checkpoint-12"


def test_unfinished_checkpoints_go_and_newer_damaged_ones_are_renamed(folder):
    (folder / "checkpoint-16").mkdir()
    (folder / "checkpoint-16" / "optimizer.pt").touch()
    (folder / "damaged-checkpoint-12").mkdir()
    set_aside(folder, folder / "checkpoint-8")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-4", "checkpoint-8", "damaged-checkpoint-12"]
    assert (folder / "damaged-checkpoint-12" / "optimizer.pt").is_file()


def test_other_folders_beside_checkpoints_are_no_checkpoints(folder):
    others = ("checkpoint-best", "checkpoint-9x", "checkpoints")
    for name in others:
        (folder / name).mkdir()
    assert last_whole(folder) == folder / "checkpoint-12"
    set_aside(folder, None)
    assert {path.name for path in folder.iterdir() if not path.name.startswith("damaged-")} == set(others)
