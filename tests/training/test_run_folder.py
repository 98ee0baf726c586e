import json

import pytest

from samparser._lock import LOCK
from samparser.training.checkpoints import mark_complete
from samparser.training.environment import git_state
from samparser.training.run_folder import RunFolder, RunFolderError, differences


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def test_a_new_folder_records_settings_and_versions(folder):
    folder.open({"train": {"seed": 3}}, resume=False)
    assert json.loads(folder.settings.read_text()) == {"written_by": "samparser train", "train": {"seed": 3}}
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"samparser", "torch", "peft", "transformers"} <= environment["versions"].keys()
    assert environment["git"] == git_state()


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
    folder.log.touch()
    folder.open({"seed": 4}, resume=False, overwrite=True)
    assert not folder.log.exists()
    assert json.loads(folder.settings.read_text()) == {"written_by": "samparser train", "seed": 4}


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


def write_run(folder):
    """One file of each kind that a run leaves."""
    folder.open({"train": {"seed": 3}}, resume=False)
    names = [
        *("checkpoints/checkpoint-4/optimizer.pt", "checkpoints/damaged-checkpoint-8/optimizer.pt"),
        *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/README.md"),
        *("figures/curves.png", "figures/spectra.png", "figures/best-median-worst.png"),
        *("tensorboard/events.out.tfevents.1.host.2", "scores.json", "scores.csv", "scores_before.csv"),
        *("scores_before.json", "finished.json", "log.jsonl"),
    ]
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()


def test_overwriting_deletes_what_a_run_writes(folder):
    write_run(folder)
    folder.open({"train": {"seed": 4}}, resume=False, overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["environment.json", "settings.json"]


def test_overwriting_leaves_everything_else_where_it_is(folder, tmp_path):
    write_run(folder)
    outside = tmp_path / "outside.png"
    outside.write_text("years of work")
    own = [
        *("thesis.txt", "images/a.png", "data/masks/a.png", "adapter/notes.txt", "adapter/merged/model.safetensors"),
        *("figures/mine.png", "checkpoints/best.txt", "checkpoints/checkpoint-best/a.pt", "tensorboard/notes.md"),
        *("features/ab/x.safetensors", "sub/settings.json", "log.jsonl.bak", "scores_of_others.csv"),
    ]
    for name in own:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text("years of work")
    # Links are taken away and not followed.
    for name, target in {"checkpoints/checkpoint-9": tmp_path, "scores.json": outside}.items():
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(target)
    folder.open({"train": {"seed": 4}}, resume=False, overwrite=True)
    assert [name for name in own if (folder.path / name).read_text() != "years of work"] == []
    assert outside.read_text() == "years of work"
    left = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert left == {*own, "settings.json", "environment.json"}


@pytest.mark.parametrize(
    "content",
    [
        '{"editor.fontSize": 12}',
        '{"command": {}, "data": {}, "evaluation": {}}',
        "[]",
        "null",
        "3",
        '{"train": {"seed": 3}}',
    ],
)
def test_a_settings_file_that_no_run_wrote_is_refused_and_nothing_touched(folder, content):
    folder.path.mkdir()
    folder.settings.write_text(content)
    (folder.path / "photo.png").write_text("years of work")
    for options in ({"resume": False, "overwrite": True}, {"resume": True}, {"resume": False}):
        with pytest.raises(RunFolderError, match=r"settings\.json was not written by `samparser train`, so nothing"):
            folder.open({"train": {"seed": 3}}, **options)
        with pytest.raises(RunFolderError, match=r"settings\.json was not written"), folder.locked():
            pass
    assert {path.name: path.read_text() for path in folder.path.iterdir()} == {
        "settings.json": content,
        "photo.png": "years of work",
    }


@pytest.mark.parametrize("content", [b'{"train": ', b"\xff\xfe\x00", b"[" * 100_000, b""])
def test_damaged_settings_are_named(folder, content):
    folder.path.mkdir()
    folder.settings.write_bytes(content)
    for options in ({"resume": True}, {"resume": False, "overwrite": True}):
        with pytest.raises(RunFolderError, match=r"settings\.json is not JSON .*, so nothing in its folder is touched"):
            folder.open({}, **options)


@pytest.mark.parametrize("place", ["", "data", "adapter"])
def test_overwriting_is_refused_where_something_that_the_run_reads_lies_inside(folder, place):
    write_run(folder)
    needed = folder.path / place
    with pytest.raises(RunFolderError, match=f"The training data, {needed}, lies inside {folder.path}, which"):
        folder.open({}, resume=False, overwrite=True, needed={"The training data": needed})
    assert folder.log.exists()
    folder.open({}, resume=False, overwrite=True, needed={"The training data": folder.path.parent / "run2"})


def test_a_run_that_was_killed_at_any_moment_of_its_start_can_be_resumed(folder, monkeypatch):
    folder.path.mkdir()
    for name in (f".environment.{'0a' * 16}.tmp.json", f".settings.{'0b' * 16}.tmp.json", LOCK):
        (folder.path / name).write_text('{"vers')
    (folder.path / "environment.json").write_text(json.dumps({"versions": {"samparser": "0.1.0"}}))
    with folder.locked():
        folder.open({"train": {"seed": 3}}, resume=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["environment.json", "settings.json"]


def test_an_environment_file_of_somebody_else_is_no_beginning_of_a_run(folder):
    folder.path.mkdir()
    (folder.path / "environment.json").write_text('{"stage": "production"}')
    with pytest.raises(RunFolderError, match="is not empty and holds no run"):
        folder.open({}, resume=True)
    assert (folder.path / "environment.json").read_text() == '{"stage": "production"}'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"step": 1}\nnonsense\n{"step": 3}\n', r"line 2 is not JSON: 'nonsense'"),
        ("[]\n", r"line 1 is not a JSON object: '\[\]'"),
        ('{"step": "two"}\n', "the step 'two' is no whole number"),
    ],
)
def test_a_damaged_line_of_the_log_is_named_before_training_and_no_row_is_dropped(folder, content, said):
    folder.open({}, resume=False)
    folder.log.write_text(content)
    for use in (folder.rows, lambda: folder.rewind_log(1), lambda: folder.open({}, resume=True)):
        with pytest.raises(RunFolderError, match=rf"log\.jsonl.*{said}.*Mend that line, or start again"):
            use()
    assert folder.log.read_text() == content


def test_the_row_of_the_final_scores_is_not_doubled(folder):
    folder.open({}, resume=False)
    folder.log.write_text('{"step": 2, "loss": 1.5}\n{"step": 2, "final_miou": 0.5}\n')
    folder.rewind_log(2)
    assert folder.rows() == [{"step": 2, "loss": 1.5}]


def test_a_folder_that_another_run_writes_is_refused(folder):
    with folder.locked(), pytest.raises(RunFolderError, match=r"run is being written by another run in this process"):
        folder.locked().__enter__()
    with folder.locked():
        pass
    assert list(folder.path.iterdir()) == []


def test_some_settings_may_differ(folder):
    folder.open({"train": {"seed": 3, "logging_steps": 2}}, resume=False)
    folder.open({"train": {"seed": 3, "logging_steps": 5}}, resume=True, may_differ={"train.logging_steps"})


def test_a_checkpoint_is_known_by_its_mark(folder):
    for step in (2, 10, 12):
        (folder.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (folder.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert folder.last_checkpoint() is None
    for step in (2, 10):
        mark_complete(folder.checkpoints / f"checkpoint-{step}")
    assert folder.last_checkpoint() == folder.checkpoints / "checkpoint-10"


def test_going_on_and_starting_again_are_not_done_together(folder):
    write_run(folder)
    with pytest.raises(RunFolderError, match=r"both --resume and --overwrite were given.*Give one of them"):
        folder.open({"train": {"seed": 3}}, resume=True, overwrite=True)
    assert folder.log.exists()
