import json
import subprocess

import pytest

from samparser.training.run_folder import COMPLETE, RunFolder, RunFolderError, differences, git_state


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_new_folder_records_settings_and_versions(folder):
    folder.open({"train": {"seed": 3}}, resume=False)
    assert json.loads(folder.settings.read_text()) == {"train": {"seed": 3}}
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"samparser", "torch", "peft", "transformers"} <= environment["versions"].keys()
    assert environment["git"] == git_state()


def test_the_state_of_the_repository_is_its_commit_and_the_number_of_changed_files(tmp_path):
    assert git_state(tmp_path) is None
    author = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    (tmp_path / "new.txt").touch()
    state = git_state(tmp_path)
    assert state["changed_files"] == 1
    assert len(state["commit"]) == 40


def test_resuming_with_other_settings_names_each_difference(folder):
    folder.open({"train": {"seed": 3, "epochs": 2}, "model": "a"}, resume=False)
    with pytest.raises(RunFolderError) as error:
        folder.open({"train": {"seed": 4, "epochs": 2}, "model": "b"}, resume=True)
    assert "model: 'a' there, 'b' now" in str(error.value)
    assert "train.seed: 3 there, 4 now" in str(error.value)
    assert "epochs" not in str(error.value)


def test_the_same_settings_need_resume_or_overwrite(folder):
    folder.open({"seed": 3}, resume=False)
    with pytest.raises(RunFolderError, match="--resume to go on with it, --overwrite to delete it"):
        folder.open({"seed": 3}, resume=False)
    folder.open({"seed": 3}, resume=True)
    (folder.path / "old").touch()
    folder.open({"seed": 4}, resume=False, overwrite=True)
    assert not (folder.path / "old").exists()
    assert json.loads(folder.settings.read_text()) == {"seed": 4}


def test_a_folder_with_other_files_is_left_alone_even_when_overwriting(folder):
    folder.path.mkdir()
    precious = folder.path / "thesis.txt"
    precious.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="is not empty and holds no run"):
            folder.open({"seed": 3}, resume=True, overwrite=overwrite)
    assert precious.read_text() == "years of work"


def test_a_file_in_place_of_the_folder_is_named(folder):
    folder.path.write_text("")
    with pytest.raises(RunFolderError, match="run is a file"):
        folder.open({}, resume=False)


def test_only_checkpoints_written_to_their_end_count(folder):
    for step in (2, 10, 12):
        (folder.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    assert folder.last_checkpoint() is None
    for step in (2, 10):
        (folder.checkpoints / f"checkpoint-{step}" / COMPLETE).touch()
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-10"
    folder.remove_incomplete_checkpoints()
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_rewinding_the_log_drops_later_rows_and_a_line_cut_off(folder):
    folder.path.mkdir()
    folder.log.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo'
    )
    folder.rewind_log(2)
    assert folder.log.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'


def test_differences_of_equal_settings_are_none():
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) == []
    assert differences({"a": 1}, {}) == ["a: 1 there, '(not set)' now"]
