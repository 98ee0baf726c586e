"""What goes wrong in a verb ends in one message and a status: mistakes, damage, limits, signals and our own faults."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

import samparser.cli.methods
from samparser.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ending_with(capsys, monkeypatch):
    """A function: lets a verb raise an error, and returns status and message."""

    def run(error, *words):
        def fail(arguments):
            raise error

        monkeypatch.setattr(samparser.cli.methods, "run", fail)
        status = main(["methods", *words])
        captured = capsys.readouterr()
        assert captured.out == ""
        return status, captured.err

    return run


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("min_area is 0"), "methods: error: min_area is 0\n"),
        (OSError("no/such/folder is not there"), "methods: error: no/such/folder is not there\n"),
        (ImportError("Drawing needs matplotlib"), "methods: error: Drawing needs matplotlib\n"),
        (RuntimeError("The cell failed"), "methods: error: The cell failed\n"),
        (MemoryError(), "The memory of this machine does not suffice (MemoryError)."),
        (MemoryError("Unable to allocate 5.3 GiB"), "does not suffice (Unable to allocate 5.3 GiB)."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "The memory of this machine does not"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.json"),
            "disk is full, or a limit on sizes is reached",
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Free some space, then give the same command again."),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full, or a limit on sizes"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "the disk is full, or"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk is full, or"),
        (RecursionError("maximum recursion depth exceeded"), "or an option is nested too deeply to be read (max"),
        (
            OverflowError("int too big to convert"),
            "in a file or an option is too large to be used (int too big",
        ),
        (
            SafetensorError("Error while deserializing header: HeaderTooLarge"),
            "A file is damaged or cut off, or is",
        ),
        (EOFError("Ran out of input"), "A file is damaged or cut off, or is not what its name says (EOFError: Ran out"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "is not what its name says (UnicodeDecode"),
        (SystemExit(0), "Code that was imported ended the program by itself, with sys.exit(0)."),
        (SystemExit("bye"), "ended the program by itself, with sys.exit('bye')."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_that_input_can_cause_end_with_their_message(ending_with, error, said):
    status, message = ending_with(error)
    assert status == 2
    assert said in message
    assert message.count("samparser methods: error:") == 1
    assert message.endswith("(--traceback shows where it arose)\n")
    assert "Traceback" not in message
    assert "foresee" not in message


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'NoneType' object has no attribute 'shape'"),
        KeyError("file_name"),
        IndexError("list index out of range"),
        TypeError("'NoneType' object is not subscriptable"),
        AssertionError(),
        ZeroDivisionError("division by zero"),
        NotImplementedError("not for Conv3d"),
        pickle.UnpicklingError("invalid load key"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_only_a_fault_of_ours_can_cause_are_not_blamed_on_the_input(ending_with, error):
    status, message = ending_with(error)
    assert status == 2
    if isinstance(error, NotImplementedError):  # a RuntimeError, which libraries raise with a message for users
        assert message.startswith("samparser methods: error: not for Conv3d\n")
        return
    assert f"did not foresee: {type(error).__name__}: {str(error) or type(error).__name__}\n" in message
    assert "a fault of samparser rather than of your input. The same command with --traceback shows" in message
    assert "Traceback" not in message


def test_a_message_does_not_steer_the_terminal(ending_with):
    _, message = ending_with(ValueError("images/\x1b[2Ja.png\rsamparser\nsecond line"))
    assert "error: images/\\x1b[2Ja.png\\rsamparser\nsecond line\n" in message


def test_a_type_error_that_we_raise_ourselves_is_a_message_for_the_user(capsys, monkeypatch):
    from samparser.prediction import predict

    monkeypatch.setattr(samparser.cli.methods, "run", lambda arguments: predict(None, None, "no image", boxes=[]))
    assert main(["methods"]) == 2
    message = capsys.readouterr().err
    assert "foresee" not in message
    assert "got a NoneType." in message


def test_the_traceback_is_let_through_when_asked_for(ending_with):
    with pytest.raises(KeyError):
        ending_with(KeyError("file_name"), "--traceback")


def test_an_error_in_a_process_that_reads_images_comes_without_its_traceback(ending_with):
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "worker.py", line 349, in _worker_loop\n    data = fetcher.fetch(index)\n'
        "DataError: train/a.png does not open: image file is truncated\nCopy it again.\n"
    )
    status, message = ending_with(ValueError(text))
    assert status == 2
    assert message.startswith(
        "samparser methods: error: DataError: train/a.png does not open: image file is truncated\nCopy it again.\n"
    )


def test_a_bar_of_progress_ends_before_the_message(capsys, monkeypatch):
    from tqdm.auto import tqdm

    def fail(arguments):
        bar = tqdm(total=3, ascii=True)
        bar.update()
        raise ValueError("no more")

    monkeypatch.setattr(samparser.cli.methods, "run", fail)
    assert main(["methods"]) == 2
    assert "\nsamparser methods: error: no more\n" in capsys.readouterr().err


def test_what_needs_less_memory_is_named_for_each_verb():
    from samparser.cli.running import explain

    assert "--eval_batch 4" in explain(MemoryError(), "evaluate")
    assert "--batch 8" in explain(MemoryError(), "predict")
    assert "--max_instances 16" in explain(MemoryError(), "train")


def command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "samparser_command", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        **options,
    )


def test_a_reader_that_has_seen_enough_is_no_error():
    for words in ("methods", "--help", "train --help"):
        script = f"{sys.executable} -m samparser_command {words} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert (done.returncode, done.stderr) in ((141, ""), (0, "")), words


def test_output_that_cannot_be_written_or_shown_is_no_traceback(tmp_path):
    if Path("/dev/full").exists():
        words = [sys.executable, "-m", "samparser_command", "--help"]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        message = "samparser: error: The output cannot be written: No space left on device.\n"
        assert (done.returncode, done.stderr) == (2, message)
    done = command("däta", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 2
    assert "There is no verb" in done.stderr


def test_a_samparser_that_cannot_be_imported_says_so():
    code = (
        "import sys, samparser_command\n"
        "sys.modules['peft'] = None\n"
        "raise SystemExit(samparser_command.main(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("samparser methods: error: samparser cannot be imported: ")


@pytest.mark.skipif(os.name == "nt", reason="limits on the size of files are a thing of Unix")
def test_a_full_disk_ends_with_one_message_and_leaves_nothing(tiny_sam_folder, toy_coco, tmp_path):
    import resource

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    run = tmp_path / "run"
    assert main([*training(tiny_sam_folder, toy_coco, run), "--max_steps", "1"]) == 0
    done = command("merge", run / "adapter", tmp_path / "merged", preexec_fn=limited)
    assert done.returncode == 2
    assert "samparser merge: error: A file could not be written: the disk is full, or a limit on sizes" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def training(model, data, output):
    words = [
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output_dir",
        output,
        "--report_to",
        "none",
        "--jitter_max",
        "2",
    ]
    return [str(word) for word in [*words, "--eval_split", "none"]]


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_training_ends_with_one_line(tiny_sam_folder, toy_coco, tmp_path, number, how):
    words = training(tiny_sam_folder, toy_coco, tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-m", "samparser_command", *words, "--max_steps", "100000", "--logging_steps", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 100
    while not (log.is_file() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    said = f"\nsamparser train: stopped by {how}. The same command with --resume goes on from the last checkpoint.\n"
    assert said in err
    assert len(err.split(said)[1].splitlines()) < 3  # what is left of a progress bar
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_a_stop_during_the_first_seconds_of_importing_is_one_line_too(tmp_path):
    code = (
        "import os, signal, sys, samparser_command\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "raise SystemExit(samparser_command.main(['methods']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "\nsamparser methods: stopped by Ctrl-C.\n")


def test_the_words_for_a_full_disk_are_those_of_safetensors_and_torch(tmp_path):
    """So that a change of their words is noticed here."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    from samparser.cli.running import _is_full

    for write in (
        lambda: torch.save(torch.zeros(100_000), "/dev/full"),
        lambda: Path("/dev/full").write_bytes(b"x" * 100_000),
    ):
        with pytest.raises((RuntimeError, OSError)) as caught:
            write()
        assert _is_full(caught.value), caught.value
    with pytest.raises(SafetensorError) as caught:
        load_tensors(b"\xff" * 20)
    assert not _is_full(caught.value)
