"""Compiled training steps from features."""

import json
import subprocess
import sys

import pytest

from .test_processes import environment


@pytest.mark.parametrize("model_type", ["sam", "sam2"])
def test_compiled_steps_give_the_loss_and_gradients_of_plain_ones_and_few_graphs(model_type):
    command = [sys.executable, "-m", "tests.training.compiled_steps", model_type]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["worst"]) < 1e-5
    # One for the first numbers of prompts, one for any: not one for each of the four batches.
    assert found["graphs"] == 2


def test_compiling_for_a_cpu_without_a_compiler_is_refused_before_anything_is_written(run_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # transformers changes it for the whole process
    with pytest.raises(ValueError, match=r"the compiler .*g\+\+ is not there. Install one, name one in .* CXX"):
        run_tiny(max_steps=1, torch_compile=True, use_cpu=True)
    assert not (tmp_path / "run").exists()
