import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from samparser.compare import (
    CellError,
    ExperimentError,
    cell,
    compare,
    parse_experiment,
    run,
    select,
    store,
    tasks,
    workers,
)
from samparser.scoring.table import ScoreTable

CELLS = {
    "toy--zero-shot--once",
    *(f"toy--{row}--{cell}" for row in ("decoder", "samparser") for cell in ("trial0", "trial1", "seed0", "seed1")),
}


@pytest.fixture(scope="module")
def finished(experiment, data_root, tmp_path_factory):
    """A whole comparison; tests look at it and do not change it."""
    output = tmp_path_factory.mktemp("compare") / "small"
    lines = []
    report = compare(experiment, output=output, data_root=data_root, cost=False, say=lines.append)
    return output, report, lines


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it for tests that do."""
    shutil.copytree(finished[0], tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def ran(monkeypatch):
    """The names of the cells that are run, in order."""
    names = []
    original = tasks.run_cell

    def counting(workspace, cell, rates):
        names.append(cell.name)
        return original(workspace, cell, rates)

    monkeypatch.setattr(tasks, "run_cell", counting)
    return names


def result(output, name):
    return json.loads((output / "results" / f"{name}.json").read_text("utf-8"))


def test_every_cell_is_one_result_file_and_two_files_tell_the_whole(finished):
    output, _, lines = finished
    assert {path.stem for path in (output / "results").iterdir()} == CELLS
    assert {path.name for path in output.iterdir()} == {"results", "runs", "logs", "features", "small.md", "small.json"}
    assert lines[0] == "0 of 9 results are there"
    assert len(lines) == 10
    assert lines[-1].startswith("[9/9] toy, samparser, seed 1: mIoU ")


def test_a_result_holds_settings_versions_scores_and_what_was_trained(finished):
    output, _, _ = finished
    cell = result(output, "toy--samparser--seed1")
    assert cell["settings"]["training"]["seed"] == 1
    assert cell["settings"]["options"]["parametrization"] == "relative"
    assert cell["settings"]["data"]["train_images"].startswith("6 images")
    assert {"samparser", "torch", "peft"} <= set(cell["versions"])
    # The tiny neck's convolutions are (32, 24) and (32, 32 * 9): ranks 24 and 32.
    assert cell["trained"]["by_part"]["neck"] == 24 + 32
    adapter = output / "runs" / "toy--samparser--seed1" / "adapter" / "adapter_model.safetensors"
    assert cell["trained"]["bytes"] == pytest.approx(adapter.stat().st_size, rel=0.01)
    assert cell["time"]["cached"]
    assert cell["time"]["steps"] == 6


def test_the_scores_are_those_of_the_rows_that_were_written(finished):
    output, report, _ = finished
    for seed in (0, 1):
        name = f"toy--decoder--seed{seed}"
        table = ScoreTable.from_csv(output / "runs" / name / "scores.csv")
        cell = result(output, name)
        assert cell["scores"]["instance_image_mean"]["miou"] == table.miou
        assert sum(cell["units"]["miou"].values()) / 6 == pytest.approx(table.miou)
    means = [result(output, f"toy--decoder--seed{seed}")["scores"]["instance_image_mean"]["f1"] for seed in (0, 1)]
    assert report.columns[0].score("decoder", "f1").mean == pytest.approx(sum(means) / 2)


def test_trials_see_no_test_image_and_the_best_of_them_decides_the_rates(finished, experiment):
    output, _, _ = finished
    for row in ("decoder", "samparser"):
        trials = [result(output, f"toy--{row}--trial{number}") for number in (0, 1)]
        assert all(set(trial["units"]["miou"]) <= {f"train/train-{i:03d}.png" for i in range(6)} for trial in trials)
        assert trials[0]["settings"]["data"]["train_images"].startswith("3 images")
        best = max(trials, key=lambda trial: trial["scores"]["instance_image_mean"]["miou"])
        final = result(output, f"toy--{row}--seed0")
        assert final["rates"] == best["rates"]
        assert final["settings"]["training"]["learning_rate"] == best["rates"]["learning_rate"]
        assert set(final["units"]["miou"]) == {f"val/val-{i:03d}.png" for i in range(6)}


def test_a_second_command_runs_nothing_and_writes_the_same_page(copied, experiment, data_root, ran):
    before = (copied / "small.md").read_text("utf-8")
    compare(experiment, output=copied, data_root=data_root, cost=False, say=lambda line: None)
    assert ran == []
    assert (copied / "small.md").read_text("utf-8") == before


def test_only_the_missing_cell_is_run_and_gives_the_same_scores(copied, experiment, data_root, ran):
    name = "toy--samparser--seed1"
    before = result(copied, name)
    (copied / "results" / f"{name}.json").unlink()
    shutil.rmtree(copied / "runs" / name)
    compare(experiment, output=copied, data_root=data_root, cost=False, say=lambda line: None)
    assert ran == [name]
    assert result(copied, name)["units"] == before["units"]


def test_results_made_with_other_settings_are_refused_with_the_difference(copied, changed, data_root, ran):
    other = parse_experiment(changed(lambda content: content["training"].update(weight_decay=0.25)))
    with pytest.raises(ExperimentError, match=r"weight_decay: 5e-05 there, 0\.25 now") as error:
        compare(other, output=copied, data_root=data_root, cost=False)
    assert "toy--decoder--trial0.json" in str(error.value)
    assert "--output" in str(error.value)
    assert ran == []


def test_another_checkpoint_under_the_same_name_is_another_setting(
    copied, changed, data_root, tmp_path, other_tiny_sam
):
    path = parse_experiment(changed(lambda content: None)).model
    shutil.copytree(path, tmp_path / "sam")
    other_tiny_sam.save_pretrained(tmp_path / "sam")
    other = parse_experiment(changed(lambda content: content.update(model=str(tmp_path / "sam"))))
    with pytest.raises(ExperimentError, match=r"model\.weights: '[0-9a-f]{16}' there, '[0-9a-f]{16}' now"):
        compare(other, output=copied, data_root=data_root, cost=False)


def test_a_damaged_result_is_named(copied, experiment, data_root):
    path = copied / "results" / "toy--decoder--seed0.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ExperimentError, match=r"toy--decoder--seed0\.json is not JSON.*Delete it"):
        compare(experiment, output=copied, data_root=data_root, cost=False, say=lambda line: None)


def test_a_cell_that_fails_is_named_and_what_is_finished_is_kept(copied, experiment, data_root, monkeypatch):
    for seed in (0, 1):
        (copied / "results" / f"toy--decoder--seed{seed}.json").unlink()
        shutil.rmtree(copied / "runs" / f"toy--decoder--seed{seed}")
    original = tasks.run_cell

    def failing(workspace, cell, rates):
        if cell.number == 1:
            raise RuntimeError("the lights went out")
        return original(workspace, cell, rates)

    monkeypatch.setattr(tasks, "run_cell", failing)
    with pytest.raises(CellError, match=r"toy, decoder, seed 1 failed: RuntimeError: the lights went out") as error:
        compare(experiment, output=copied, data_root=data_root, cost=False, say=lambda line: None)
    assert "toy--decoder--seed1.log" in str(error.value)
    assert (copied / "results" / "toy--decoder--seed0.json").is_file()
    assert not (copied / "results" / "toy--decoder--seed1.json").exists()


def test_missing_data_say_which_files_are_looked_for_and_where_they_come_from(experiment, tmp_path):
    with pytest.raises(ExperimentError) as error:
        compare(experiment, output=tmp_path / "out", data_root=tmp_path)
    for word in ("1 of 1 data sets", "toy-coco does not exist", "train/*.png", "from made by the tests", "--data"):
        assert word in str(error.value)
    (tmp_path / "toy-coco" / "train").mkdir(parents=True)
    (tmp_path / "toy-coco" / "train" / "a.png").touch()
    with pytest.raises(ExperimentError, match=r"toy-coco lacks annotations/instances_train\.json\n"):
        compare(experiment, output=tmp_path / "out", data_root=tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_a_data_root_the_experiment_s_own_is_taken_or_asked_for(experiment, tmp_path):
    with pytest.raises(ExperimentError, match=r"needs --data-root, the folder that holds toy-coco"):
        compare(experiment, output=tmp_path / "out")
    own = replace(experiment, data_root="here", file=tmp_path / "small.json")
    with pytest.raises(ExperimentError, match=str(tmp_path / "here")):
        compare(own, output=tmp_path / "out")


def test_two_processes_give_what_one_gives(copied, experiment, data_root):
    names = ["toy--samparser--seed0", "toy--samparser--seed1"]
    before = [result(copied, name)["units"] for name in names]
    for name in names:
        (copied / "results" / f"{name}.json").unlink()
        shutil.rmtree(copied / "runs" / name)
    compare(experiment, output=copied, data_root=data_root, processes=2, cost=False, say=lambda line: None)
    assert [result(copied, name)["units"] for name in names] == before


def test_costs_are_measured_once_and_stand_on_the_page(copied, experiment, data_root, monkeypatch):
    # In this process: starting one takes longer than the measurement.
    monkeypatch.setattr(workers.Workers, "_measured_alone", lambda self, row: tasks.do(self.workspace, row, {}))
    report = compare(experiment, output=copied, data_root=data_root, say=lambda line: None)
    assert list(report.costs) == ["zero-shot", "decoder", "samparser"]
    ours, decoder, nothing = (report.costs[name] for name in ("samparser", "decoder", "zero-shot"))
    assert ours["trained"] == decoder["trained"] + 24 + 32
    assert ours["macs"]["step"] > ours["macs"]["cached_step"] > 0
    assert nothing["macs"]["step"] == nothing["macs"]["forward"] == decoder["macs"]["forward"]
    assert 0.1 < ours["step_ratio"] < 10
    assert "## Cost" in (copied / "small.md").read_text("utf-8")
    monkeypatch.setattr(workers.Workers, "_measured_alone", lambda self, row: pytest.fail("measured again"))
    again = compare(experiment, output=copied, data_root=data_root, say=lambda line: None)
    assert again.costs == report.costs


def test_a_selection_keeps_the_reference_and_goes_on_counting_seeds(experiment):
    chosen = select(experiment, data=["toy"], rows=["zero-shot"], seeds=3)
    assert [row.name for row in chosen.methods] == ["zero-shot", "decoder"]
    assert chosen.seeds == (0, 1, 2)
    assert select(experiment, None, None, 1).seeds == (0,)
    with pytest.raises(ExperimentError, match=r"no data set 'coco'.*toy"):
        select(experiment, ["coco"], None, None)
    with pytest.raises(ExperimentError, match="seeds is 0"):
        select(experiment, None, None, 0)


def again(experiment, output, data_root):
    compare(experiment, output=output, data_root=data_root, cost=False, say=lambda line: None)


@pytest.mark.parametrize(("kills", "run_again"), [(1, False), (2, False), (1, True)])
def test_a_kill_while_a_finished_cell_is_tidied_leaves_nothing_to_stumble_over(
    kills, run_again, copied, experiment, data_root, monkeypatch
):
    seed, trial = "toy--samparser--seed1", "toy--samparser--trial0"
    before = result(copied, seed)
    for name in (seed,) if run_again else (seed, trial):
        (copied / "results" / f"{name}.json").unlink()
        shutil.rmtree(copied / "runs" / name, ignore_errors=True)
    left = [kills]

    def killed(path, *args, **options):
        """A process that ends after one file is gone."""
        if left[0]:
            left[0] -= 1
            next(file for file in path.rglob("*") if file.is_file()).unlink()
            raise KeyboardInterrupt
        shutil.rmtree(path, *args, **options)

    monkeypatch.setattr(cell, "shutil", SimpleNamespace(rmtree=killed))
    for _ in range(kills):
        with pytest.raises(KeyboardInterrupt):
            again(experiment, copied, data_root)
        for name in (seed, trial) if run_again else ():
            (copied / "results" / f"{name}.json").unlink(missing_ok=True)
    again(experiment, copied, data_root)
    assert left == [0]
    assert result(copied, seed)["units"] == before["units"]
    assert [path.name for path in copied.rglob("*deleted*")] == []
    assert sorted(path.name for path in (copied / "runs").iterdir()) == sorted(
        cell for cell in CELLS if "trial" not in cell
    )
    assert not (copied / "runs" / seed / "checkpoints").exists()


def test_a_result_is_written_before_what_it_was_made_from_is_deleted(copied, experiment, data_root, monkeypatch):
    name = "toy--decoder--seed0"
    (copied / "results" / f"{name}.json").unlink()
    shutil.rmtree(copied / "runs" / name)
    there = []
    original = cell.tidy
    monkeypatch.setattr(
        run, "tidy", lambda output, done: there.append(store.ResultStore(output).path(done.name).is_file()) or
        original(output, done)
    )  # fmt: skip
    again(experiment, copied, data_root)
    assert there == [True] * len(CELLS)


def test_a_run_goes_on_when_the_output_is_spelled_another_way_or_was_moved(
    copied, experiment, data_root, tmp_path, monkeypatch, ran
):
    name = "toy--samparser--seed1"
    before = result(copied, name)
    monkeypatch.chdir(tmp_path)
    for output in ("small", "../" + tmp_path.name + "/small", str(copied)):
        (copied / "results" / f"{name}.json").unlink()
        again(experiment, output, data_root)
        assert result(copied, name)["units"] == before["units"]
    copied.rename(tmp_path / "moved")
    (tmp_path / "moved" / "results" / f"{name}.json").unlink()
    again(experiment, "moved", data_root)
    assert result(tmp_path / "moved", name)["units"] == before["units"]
    assert ran == [name] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "lacks cell, settings, rates"),
        ("null", "lacks cell, settings"),
        ("3", "lacks cell, settings"),
        ('{"settings": {}}', "lacks cell, rates, scores"),
        ("[" * 50_000, "is not JSON"),
        ("\0", "is not JSON"),
    ],
    ids=["a list", "null", "a number", "settings alone", "nested too deep", "zeros"],
)
def test_a_result_that_is_none_is_named_with_what_to_do(text, said, copied, experiment, data_root):
    (copied / "results" / "toy--decoder--seed0.json").write_text(text)
    with pytest.raises(ExperimentError, match=rf"toy--decoder--seed0\.json {said}.*Delete it to run its cell again"):
        again(experiment, copied, data_root)


def test_options_that_a_method_cannot_take_are_named_before_anything_is_trained(changed, data_root, tmp_path):
    for rank in ("four", 2.5, -1):

        def change(content, rank=rank):
            content["methods"][2].update(method="lora", options={"rank": rank})
            content["paper"] = {}

        other = parse_experiment(changed(change))
        with pytest.raises(ExperimentError, match=rf"lora: method 'lora' cannot be applied with the options .*{rank}"):
            again(other, tmp_path / "out", data_root)
    assert not list(tmp_path.rglob("*.json"))
