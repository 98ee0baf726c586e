import pytest

from samparser.compare import CellError, ExperimentError, compare, parse_options, workers
from samparser.compare.launcher import JobLost, NotStarted
from samparser.compare.launchers import check_launcher
from samparser.compare.plan import Cell

CELLS = [Cell("toy", "decoder", "seed", number) for number in range(4)]


class Scripted:
    """A launcher whose jobs give or raise what the test says, the last one that was started first."""

    at_once, tries, goes_on = None, 3, True

    def __init__(self, script):
        self.script, self.started, self.closed, self.stopped = script, [], 0, 0

    def start(self, task, rates):
        self.started.append(task)
        return len(self.started), task

    def wait(self, jobs):
        return [max(jobs)]

    def result(self, job):
        outcome = self.script[job[1].number].pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def stop(self):
        self.stopped += 1

    def close(self):
        self.closed += 1


def crew(script):
    launcher, lines = Scripted(script), []
    found = workers.Workers(None, launcher=launcher, say=lines.append)
    for cell in CELLS[: len(script)]:
        found.add(cell)
    return found, launcher, lines


def test_what_was_lost_is_started_again_and_every_result_is_given_once():
    found, launcher, lines = crew([[{"n": 0}], [JobLost("job 7 died."), JobLost("job 9 died."), {"n": 1}], [{"n": 2}]])
    assert sorted(result["n"] for _, result in found.results()) == [0, 1, 2]
    assert launcher.started.count(CELLS[1]) == 3
    assert lines == [
        "toy, decoder, seed 1: job 7 died. It is started again (2 of 3 tries).",
        "toy, decoder, seed 1: job 9 died. It is started again (3 of 3 tries).",
    ]
    assert (launcher.closed, launcher.stopped) == (1, 0)


def test_after_the_last_try_the_others_are_run_and_the_failures_are_counted():
    found, launcher, lines = crew([[JobLost("gone.")] * 3, [CellError("seed 1 failed")], [{"n": 2}]])
    given = []
    with pytest.raises(CellError, match=r"seed 1 failed\n\(2 tasks failed; this is the first\.\)"):
        given.extend(found.results())
    assert [result["n"] for _, result in given] == [2]
    assert launcher.started.count(CELLS[0]) == 3
    assert launcher.started.count(CELLS[1]) == 1
    assert lines[-1].startswith("toy, decoder, seed 0 failed: gone. What is finished is kept")


def test_a_queue_that_is_full_gets_the_others_when_one_has_ended_and_one_that_takes_nothing_is_told():
    found, launcher, _ = crew([[{"n": 0}], [{"n": 1}], [{"n": 2}]])
    begin, room = launcher.start, []

    def start(task, rates):
        if len(launcher.started) > len(room):
            raise NotStarted("too many jobs.")
        return begin(task, rates)

    launcher.start = start
    for _ in found.results():
        room.append(1)
    assert launcher.started == CELLS[:3]
    found, launcher, _ = crew([[{"n": 0}]])

    def refuse(task, rates):
        raise NotStarted("you may submit nothing.")

    launcher.start = refuse
    with pytest.raises(CellError, match=r"toy, decoder, seed 0 could not be started: you may submit nothing\."):
        list(found.results())


def test_a_grid_of_six_hundred_cells_goes_on_after_lost_nodes():
    # 5 sets, 15 methods, 3 rates tried and 5 seeds of the best; a node takes 7 jobs along, again and again.
    script = {number: [{"n": number}] for number in range(600)}
    for number in range(0, 600, 17):
        for cell in range(number, min(number + 7, 600)):
            script[cell].insert(0, JobLost("its node was lost."))
    launcher, lines = Scripted(script), []
    found = workers.Workers(None, launcher=launcher, say=lines.append)
    cells = [Cell("toy", f"row{row}", "trial", number) for row in range(75) for number in range(3 * row, 3 * row + 3)]
    for cell in cells:
        found.add(cell)
    seen, tried = [], {}
    for cell, result in found.results():
        seen.append(result["n"])
        if cell.kind == "trial":
            tried[cell.row] = tried.get(cell.row, 0) + 1
            if tried[cell.row] == 3:
                first = 225 + 5 * int(cell.row.removeprefix("row"))
                for number in range(first, first + 5):
                    found.add(Cell("toy", cell.row, "seed", number))
    assert sorted(seen) == list(range(600))
    assert len(lines) == sum(number % 17 < 7 for number in range(600)) == len(launcher.started) - 600


def test_a_command_that_is_stopped_ends_its_jobs():
    found, launcher, _ = crew([[KeyboardInterrupt()], [{"n": 1}]])
    with pytest.raises(KeyboardInterrupt):
        list(found.results())
    assert (launcher.stopped, launcher.closed) == (1, 1)


def test_options_are_words_with_values_that_json_knows_or_text():
    words = ["timeout_min=60", "slurm_partition=gpu", 'slurm_additional_parameters={"account": "a=b"}', "address="]
    assert parse_options(words) == {
        "timeout_min": 60,
        "slurm_partition": "gpu",
        "slurm_additional_parameters": {"account": "a=b"},
        "address": "",
    }
    with pytest.raises(ExperimentError, match="NAME=VALUE, with blanks between them; got 'gpu'"):
        parse_options(["gpu"])
    with pytest.raises(ExperimentError, match="name mem_gb twice"):
        parse_options(["mem_gb=1", "mem_gb=2"])


def test_launchers_and_their_options_are_refused_before_anything_is_looked_at(experiment, tmp_path):
    check_launcher("processes", {})
    with pytest.raises(ExperimentError, match=r"no launcher 'submit'. Did you mean 'submitit'\? Known are processes, "):
        compare(experiment, output=tmp_path / "out", data_root=tmp_path, launcher="submit")
    with pytest.raises(ExperimentError, match=r"launcher_options \(mem_gb\) are for the launchers submitit and ray"):
        compare(experiment, output=tmp_path / "out", data_root=tmp_path, launcher_options={"mem_gb": 3})
    assert not (tmp_path / "out").exists()
