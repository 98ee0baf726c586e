import json
import os
import signal
import subprocess
import sys
import time

import pytest

from samparser.cli import main


def test_the_command_runs_a_part_of_an_experiment_and_prints_its_page(content, data_root, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(content))
    given = ["compare", tmp_path / "small.json", "--data_root", data_root, "--output", tmp_path / "out", "--seeds", 1]
    given += ["--limit", 2, "--epochs", 0.5, "--rows", "zero-shot", "--data", "toy", "--no_cost"]
    assert main([str(word) for word in given]) == 0
    out = capsys.readouterr().out
    assert "[4/4] toy, decoder, seed 0: mIoU" in out
    assert "Toy: 2 training and 2 test images." in out
    assert "| decoder only |" in out
    assert (tmp_path / "out" / "small.md").read_text("utf-8") in out
    assert json.loads((tmp_path / "out" / "small.json").read_text("utf-8"))["experiment"]["seeds"] == [0]


def test_a_mistake_in_the_experiment_ends_with_one_message(content, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps({**content, "sedes": []}))
    assert main(["compare", str(tmp_path / "small.json"), "--output", str(tmp_path / "out")]) == 2
    assert "samparser compare: error: small.json: there is no field 'sedes'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_comparison_ends_with_one_line_and_its_processes_end_with_it(
    content, data_root, tmp_path, number, how
):
    content = {
        **content,
        "training": {**content["training"], "num_train_epochs": 10_000},
        "methods": content["methods"][1:2],
    }
    del content["search"], content["paper"]
    (tmp_path / "long.json").write_text(json.dumps(content))
    words = ["compare", tmp_path / "long.json", "--data_root", data_root, "--output", tmp_path / "out", "--no_cost"]
    process = subprocess.Popen(
        [sys.executable, "-m", "samparser_command", *map(str, words), "--processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while len(list(tmp_path.rglob("log.jsonl"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    # A terminal sends Ctrl-C to every process that it runs, a scheduler SIGTERM to the one that it started.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "leaked" not in err
    assert "Traceback" not in err
    assert f"samparser compare: stopped by {how}. What is finished is kept; the same command goes on from" in err
    for _ in range(100):  # Python's own tracker of resources ends a moment later
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")
