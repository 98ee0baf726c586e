"""Runs in processes of their own: killed with SIGKILL and resumed, and spread over two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from samparser.cli import main
from samparser.training import RunFolder, processes
from samparser.training.run_folder import RunFolderError

from ..conftest import write_toy_coco

# Both tests want the machine's cores for themselves.
pytestmark = pytest.mark.xdist_group("processes")


def arguments(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--model", str(model), "--data", str(data), "--output_dir", str(output), "--eval_split", "none"),
        *("--learning_rate", "1e-3", "--coefficient_lr", "1e-2", "--jitter_max", "2", "--max_instances", "2"),
        *("--report_to", "none", "--logging_steps", "1", *more),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "adapter_model.safetensors")


def test_a_run_killed_with_sigkill_and_resumed_ends_with_the_weights_of_an_uninterrupted_one(
    tiny_sam_folder, toy_coco, tmp_path
):
    more = ("--num_train_epochs", "12", "--eval_strategy", "steps", "--eval_steps", "3")
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    command = [sys.executable, "-m", "samparser.cli", *arguments(tiny_sam_folder, toy_coco, cut, *more)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while RunFolder(cut).last_checkpoint() is None:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (cut / "finished.json").exists(), "the run ended before it could be killed"
    # A checkpoint that was being written when the power went must not be taken for a whole one.
    (cut / "checkpoints" / "checkpoint-70").mkdir()

    assert main(arguments(tiny_sam_folder, toy_coco, cut, *more, "--resume")) == 0
    assert main(arguments(tiny_sam_folder, toy_coco, whole, *more)) == 0
    assert json.loads((cut / "finished.json").read_text())["steps"] == 72
    expected, got = adapter(whole), adapter(cut)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert list(RunFolder(cut).rows()) == list(RunFolder(whole).rows())


def test_two_processes_with_one_image_each_take_the_steps_of_one_process_with_two(tiny_sam_folder, toy_coco, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    # Adam divides by the gradient's size, which blows rounding up where a gradient is close to zero: small steps.
    more = ("--num_train_epochs", "2", "--eval_split", "val", "--learning_rate", "1e-4", "--coefficient_lr", "1e-3")
    more += ("--expansion", "pairs", "--expansion_rank", "3", "--expansion_images", "4", "--disable_tqdm", "false")
    more += ("--also", str(write_toy_coco(tmp_path / "other", images=3, seed=5)))
    config = Path(__file__).parents[2] / "examples" / "launch" / "two_cpu_processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m"]
    done = subprocess.run(
        [*launch, "samparser.cli", *arguments(tiny_sam_folder, toy_coco, two, *more)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(arguments(tiny_sam_folder, toy_coco, one, *more, "--per_device_train_batch_size", "2")) == 0
    assert done.stdout.count("share of the gradient's signal") == 1
    pairs = [json.loads((folder / "expansion.json").read_text())["pairs"] for folder in (one, two)]
    assert pairs[0] == pairs[1]
    assert [len(chosen) for chosen in pairs[0].values()] == [3, 3]
    rows = [[row for row in RunFolder(folder).rows() if "loss" in row] for folder in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    for single, double in zip(*rows, strict=True):
        for name in ("loss", "ce", "focal", "dice"):
            assert double[name] == pytest.approx(single[name], rel=1e-4), (single["step"], name)
    expected, got = adapter(one), adapter(two)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)
    scores = [(folder / "scores.csv").read_text().splitlines() for folder in (one, two)]
    assert len(scores[0]) == len(scores[1]) == 1 + 18
    # The base model is scored to the bit alike, however many processes share the work.
    for name in ("scores_before.csv", "scores_also_before.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    lost = [json.loads((folder / "forgetting.json").read_text())["points_lost"] for folder in (one, two)]
    assert lost[0] == pytest.approx(lost[1], abs=0.5)
    assert done.stdout.count("Forgetting: on other (val), ") == 1


def test_two_processes_train_to_the_bit_as_one_that_gathers_two_images_also_when_one_was_killed_in_between(
    tiny_sam_folder, toy_coco, tmp_path, capsys
):
    more = ("--num_train_epochs", "12", "--eval_strategy", "steps", "--eval_steps", "3", "--flip")
    one, two = tmp_path / "one", tmp_path / "two"
    config = Path(__file__).parents[2] / "examples" / "launch" / "two_cpu_processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "samparser.cli"]
    words = [*arguments(tiny_sam_folder, toy_coco, two, *more), "--cache", str(tmp_path / "shared")]
    with subprocess.Popen([*launch, *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while RunFolder(two).last_checkpoint() is None:
            assert run.poll() is None, run.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (second,) = [child for child in psutil.Process(run.pid).children() if child.environ().get("RANK") == "1"]
        second.kill()
        said = run.communicate(timeout=60)[1].decode()
    assert run.returncode != 0
    assert not (two / "finished.json").exists(), "the run ended before a process could be killed"
    assert not (two / ".lock").exists()
    # The one that is left says it, or is ended before it notices.
    assert said.count("samparser train: ") == 1, said
    assert "Another process of this run has ended" in said or "stopped by SIGTERM" in said
    assert "--resume" in said

    # Another launcher goes on; one process is another run, as it takes half as many images a step.
    assert main([*words, "--resume"]) == 2
    assert "processes: 2 there, '(not set)' now" in capsys.readouterr().err
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "samparser.cli", *words, "--resume"], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = [*arguments(tiny_sam_folder, toy_coco, one, *more), "--gradient_accumulation_steps", "2"]
    assert main([*alone, "--cache", str(tmp_path / "own")]) == 0
    expected, got = adapter(one), adapter(two)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert list(RunFolder(two).rows()) == list(RunFolder(one).rows())
    assert len(list((two / "checkpoints").glob("checkpoint-*/rng_state_1.pth"))) == 2


def test_two_processes_say_once_what_is_wrong(tiny_sam_folder, toy_coco, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").touch()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    words = arguments(tiny_sam_folder, toy_coco, tmp_path / "full")
    done = subprocess.run(
        [*torchrun, "samparser.cli", *words], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert done.stderr.count("samparser train: error: ") == 1, done.stderr
    assert "is not empty and holds no run" in done.stderr
    assert "(process 0 of 2, on " in done.stderr


def test_a_process_that_does_not_see_the_run_folder_says_so(tmp_path, monkeypatch):
    seen, unseen = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "elsewhere")
    checkpoint = seen.checkpoints / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    seen.settings.touch()
    assert processes.agreed(None, unseen) is None
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(num_processes=2, process_index=1))
    monkeypatch.setattr(processes, "_SECONDS_TO_SEE", 0)
    for name, needed in ((None, "settings.json"), ("checkpoint-3", "checkpoint-3")):

        def first_said(names, name=name):
            names[0] = name

        monkeypatch.setattr(processes, "broadcast_object_list", first_said)
        assert processes.agreed(None, seen) == (checkpoint if name else None)
        with pytest.raises(RunFolderError, match=rf"Process 1 of 2, on .*{needed}.*a disk that all machines share"):
            processes.agreed(None, unseen)


def test_fsdp2_of_pytorch_trains_to_the_bit_as_one_process_and_that_of_accelerate_is_refused_by_name(
    tiny_sam_folder, toy_coco, tmp_path
):
    methods = ("decoder", "samparser", "lora")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(Path(__file__).with_name("sharded.py")), str(tiny_sam_folder), *methods]
    done = subprocess.run([*torchrun, *words], env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{method}: weights True, masks True, moved True" for method in methods]

    config = tmp_path / "fsdp.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nuse_cpu: true\nmixed_precision: 'no'\n"
        "num_machines: 1\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 2\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "samparser.cli"]
    done = subprocess.run(
        [*launch, *arguments(tiny_sam_folder, toy_coco, tmp_path / "run")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    assert done.stderr.count("samparser train: error: accelerate was told to use FSDP") == 1
    assert not (tmp_path / "run").exists()


def test_two_processes_score_to_the_bit_as_one_and_print_once(tiny_sam_folder, toy_coco, tmp_path):
    def command(output: Path) -> list[str]:
        return [
            "evaluate",
            str(tiny_sam_folder),
            "--data",
            str(toy_coco),
            "--output",
            str(output),
            "--eval_jitter",
            "3",
        ]

    config = Path(__file__).parents[2] / "examples" / "launch" / "two_cpu_processes.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "samparser.cli"]
    done = subprocess.run(
        [*launch, *command(tmp_path / "two")], env=environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("18 instances in 6 images") == 1
    assert main(command(tmp_path / "one")) == 0
    for name in ("scores.csv", "scores.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_compiled_model_trains_and_is_scored_as_a_plain_one(tiny_sam_folder, toy_coco, tmp_path):
    # In a process of its own: the shapes that the tests check cannot be compiled.
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    more = ("--max_steps", "2", "--eval_split", "val")
    words = arguments(tiny_sam_folder, toy_coco, compiled, *more, "--torch_compile", "--torch_compile_backend", "eager")
    command = [sys.executable, "-m", "samparser.cli", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(arguments(tiny_sam_folder, toy_coco, plain, *more)) == 0
    expected, got = adapter(plain), adapter(compiled)
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (plain, compiled)]
    assert scores[0].keys() == scores[1].keys()


def test_sigterm_ends_a_run_that_another_command_could_not_join_and_that_can_be_resumed(
    tiny_sam_folder, toy_coco, tmp_path, capsys
):
    output = tmp_path / "run"
    words = arguments(tiny_sam_folder, toy_coco, output, "--num_train_epochs", "200", "--eval_strategy", "no")
    command = [sys.executable, "-m", "samparser.cli", *words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while RunFolder(output).last_checkpoint() is None:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for more in ("--resume", "--overwrite"):
            assert main([*words, more]) == 2
            assert f"{output} is being written by another process (pid {process.pid} on" in capsys.readouterr().err
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
    assert process.returncode not in (0, -signal.SIGTERM)
    assert "SIGTERM" in said
    assert "--resume" in said
    assert not (output / ".lock").exists()
    assert not (output / "finished.json").exists()
    checkpoint = RunFolder(output).last_checkpoint()
    assert checkpoint is not None
