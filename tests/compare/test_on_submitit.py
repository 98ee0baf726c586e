"""Jobs of submitit, started by its local executor: as on Slurm, but for the queue."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from samparser.compare import CellError, ExperimentError, compare, load_experiment
from samparser.compare.launcher import NotStarted
from samparser.compare.on_submitit import SubmititLauncher
from samparser.compare.tasks import Place

from .losing import losing_experiment, scores_of

pytest.importorskip("submitit", reason="needs submitit, of the extra 'cluster'")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")

LOCAL = {"cluster": "local", "timeout_min": 5}


@pytest.fixture
def place(experiment, data_root, tmp_path):
    return Place(experiment, data_root, tmp_path, None)


def test_a_job_that_is_killed_in_the_middle_of_training_goes_on_and_the_table_is_that_of_one_process(
    content, data_root, tmp_path
):
    experiment, lines = load_experiment(losing_experiment(content, tmp_path)), []
    jobs, here = tmp_path / "jobs", tmp_path / "here"
    report = compare(
        experiment,
        output=jobs,
        data_root=data_root,
        processes=2,
        launcher="submitit",
        launcher_options=LOCAL,
        cost=False,
        say=lines.append,
    )
    lost = [line for line in lines if "ended without a result" in line]
    assert len(lost) == 1
    assert lost[0].startswith("toy, losing, seed ")
    assert lost[0].endswith("It is started again (2 of 3 tries).")
    expected = compare(experiment, output=here, data_root=data_root, cost=False, say=lambda line: None)
    assert len(scores_of(here)) == 3
    assert scores_of(jobs) == scores_of(here)
    for row in ("zero-shot", "decoder", "losing"):
        assert report.columns[0].score(row, "miou") == expected.columns[0].score(row, "miou")
    # The second process went on from the checkpoint of the first.
    assert [path.name for path in tmp_path.glob("died-*")] == ["died-0"]
    assert not list((jobs / "logs").glob("*.lock"))


def test_a_cell_whose_jobs_die_too_often_is_named_and_the_others_are_run(content, data_root, tmp_path):
    experiment, lines = load_experiment(losing_experiment(content, tmp_path, dies=4)), []
    given = {"output": tmp_path / "out", "data_root": data_root, "launcher": "submitit", "cost": False}
    options = {**LOCAL, "tries": 1}
    with pytest.raises(CellError, match=r"toy, losing, seed 0 failed: job \d+ ended without a result"):
        compare(experiment, launcher_options=options, say=lines.append, **given)
    assert sorted(scores_of(tmp_path / "out")) == ["toy--decoder--seed0", "toy--zero-shot--once"]
    assert sum("The others go on." in line for line in lines) == 1
    # What the jobs printed is kept where one was lost.
    assert list((tmp_path / "out" / "jobs").rglob("*_log.err"))


def test_a_command_that_is_killed_loses_no_job_and_the_next_one_runs_none_twice(content, data_root, tmp_path):
    experiment = json.loads(json.dumps(content))
    experiment["methods"] = experiment["methods"][:2]
    experiment["training"]["num_train_epochs"] = 20
    del experiment["search"], experiment["paper"]
    (tmp_path / "slow.json").write_text(json.dumps(experiment))
    output = tmp_path / "out"
    words = [
        "compare",
        str(tmp_path / "slow.json"),
        "--data_root",
        str(data_root),
        "--output",
        str(output),
        "--no_cost",
    ]
    words += ["--launcher", "submitit", "--launcher_options", "cluster=local", "--rows", "decoder", "--seeds", "1"]
    command = [sys.executable, "-m", "samparser.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as killed:
        log, deadline = output / "runs" / "toy--decoder--seed0" / "log.jsonl", time.monotonic() + 100
        while not log.is_file():
            assert killed.poll() is None, killed.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    assert not list((output / "results").glob("*.json"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    # The job of the first command may have ended by the time that the second one has started.
    assert [path.name for path in (output / "results").iterdir()] == ["toy--decoder--seed0.json"]
    # One run from its first step to its last.
    steps = [json.loads(line)["step"] for line in log.read_text("utf-8").splitlines() if '"loss"' in line]
    assert steps == list(range(1, 121))


def test_what_the_launcher_cannot_be_told_is_refused_with_what_is_possible(place):
    for options, said in (
        ({"timeout": 5}, "submitit cannot start jobs.*timeout"),
        ({"slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'.*partition"),
        ({"timeout_min": "an hour"}, 'Parameter "timeout_min" expected type'),
        ({"nodes": 2}, "nodes is 2; a cell is one process on one machine"),
        ({"tasks_per_node": 8}, "tasks_per_node is 8; a cell is one process"),
        ({"cluster": "debug"}, "cluster is 'debug'; known are slurm, local"),
        ({"tries": 0}, "tries is 0; it must be a whole number of at least 1"),
        ({"cpus_per_task": "all"}, "cpus_per_task is 'all'; it must be a whole number"),
    ):
        with pytest.raises(ExperimentError, match=said):
            SubmititLauncher(place, None, {"cluster": "local", **options})
    assert not (place.output / "jobs").exists()


def test_without_slurm_a_job_runs_here_one_at_a_time_and_slurm_by_name_is_refused(place):
    assert SubmititLauncher(place, None, {"cluster": "local"}).at_once == 1
    assert SubmititLauncher(place, 7, {"cluster": "local"}).at_once == 7
    with pytest.raises(ExperimentError, match="Could not detect"):
        SubmititLauncher(place, None, {"cluster": "slurm"})


def test_on_slurm_the_options_become_those_of_sbatch_and_everything_is_submitted(place, monkeypatch, tmp_path):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text("#!/bin/sh\n")
    (bin_folder / "srun").chmod(0o755)
    (bin_folder / "sbatch").write_text(
        '#!/bin/sh\ncp "$1" "$(dirname "$0")/submitted.sh"\necho Submitted batch job 12\n'
    )
    (bin_folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    options = {"timeout_min": 60, "mem_gb": 8, "cpus_per_task": 4, "gpus_per_node": 1, "slurm_partition": "gpu"}
    launcher = SubmititLauncher(place, None, options)
    assert launcher.at_once is None
    launcher.start("decoder", {})
    (bin_folder / "sbatch").write_text("#!/bin/sh\necho QOSMaxSubmitJobPerUserLimit >&2\nexit 1\n")
    with pytest.raises(NotStarted, match=r"sbatch refused the job: .*QOSMaxSubmitJobPerUserLimit"):
        launcher.start("decoder", {})
    script = (bin_folder / "submitted.sh").read_text()
    for line in ("partition=gpu", "time=60", "mem=8GB", "cpus-per-task=4", "gpus-per-node=1", "job-name=small"):
        assert f"#SBATCH --{line}\n" in script
