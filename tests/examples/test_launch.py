"""The files of examples/launch: read by accelerate and bash, and run on two processes that play two machines."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samparser.cli import main

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
PROCESSES = {
    "cpu_trial.yaml": 1,
    "one_gpu.yaml": 1,
    "several_gpus.yaml": 2,
    "several_machines.yaml": 8,
    "two_cpu_processes.yaml": 2,
}

# What Slurm gives a job, with two machines that are both this one.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "two", "SLURM_CPUS_PER_TASK": "2"}
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] || exit 9
shift
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


def test_every_file_is_known_to_these_tests():
    assert {path.name for path in LAUNCH.glob("*.yaml")} == PROCESSES.keys()
    assert {path.name for path in LAUNCH.iterdir()} - PROCESSES.keys() == {
        "slurm_accelerate.sbatch",
        "slurm_torchrun.sbatch",
    }


@pytest.mark.parametrize("name", PROCESSES)
def test_launch_files_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(LAUNCH / name))
    assert config.num_processes == PROCESSES[name]
    assert config.num_machines == (2 if name == "several_machines.yaml" else 1)


@pytest.fixture
def two_machines(tmp_path):
    """Runs a file for Slurm on two machines of one process each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    # The second name comes late, as of many machines: what reads the first alone must not end the job by that.
    scontrol = "#!/bin/bash\necho 127.0.0.1\nsleep 0.2\necho other\n"
    for name, text in (
        ("srun", SRUN),
        ("scontrol", scontrol),
        ("python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def run(file: str, *words: object) -> subprocess.CompletedProcess[str]:
        # A port of its own: two of these tests may run at a time.
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment = {
            **os.environ,
            **SLURM,
            "MASTER_PORT": port,
            "PATH": path,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        environment.pop("OMP_NUM_THREADS", None)
        command = ["bash", str(LAUNCH / file), *map(str, words)]
        return subprocess.run(
            command, cwd=LAUNCH.parents[1], env=environment, capture_output=True, text=True, timeout=240
        )

    return run


@pytest.mark.skipif(os.name == "nt", reason="Slurm is for Unix")
def test_slurm_starts_torchrun_on_each_machine_and_they_train_as_one(
    two_machines, tiny_sam_folder, toy_coco, tmp_path, monkeypatch
):
    words = ["train", "--model", tiny_sam_folder, "--data", toy_coco, "--eval_split", "none", "--report_to", "none"]
    words += ["--max_steps", "2", "--jitter_max", "2", "--disable_tqdm", "true"]
    done = two_machines("slurm_torchrun.sbatch", *words, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 steps; everything is in") == 1
    alone = [*words, "--output_dir", tmp_path / "one", "--gradient_accumulation_steps", "2"]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main([str(word) for word in alone]) == 0
    finally:
        torch.set_num_threads(threads)
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.skipif(os.name == "nt", reason="Slurm is for Unix")
def test_slurm_starts_accelerate_on_each_machine_and_they_score_as_one(
    two_machines, tiny_sam_folder, toy_coco, tmp_path
):
    words = ["evaluate", tiny_sam_folder, "--data", toy_coco]
    done = two_machines("slurm_accelerate.sbatch", *words, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("18 instances in 6 images") == 1
    assert main([str(word) for word in [*words, "--output", tmp_path / "one"]]) == 0
    assert (tmp_path / "one" / "scores.csv").read_bytes() == (tmp_path / "two" / "scores.csv").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Slurm is for Unix")
def test_a_mistake_ends_the_job_with_one_message(two_machines, tiny_sam_folder, tmp_path):
    done = two_machines("slurm_torchrun.sbatch", "evaluate", tiny_sam_folder, "--data", tmp_path / "nowhere")
    assert done.returncode != 0
    assert done.stderr.count("samparser evaluate: error: ") == 1
