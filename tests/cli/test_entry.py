"""What the command answers before it knows a verb: at once, so without torch and PEFT."""

import subprocess
import sys
from pathlib import Path

import pytest

from samparser import __version__
from samparser.cli import VERBS, main

ROOT = Path(__file__).parents[2]


def run(capsys, *words):
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_version_is_told(capsys):
    assert run(capsys, "--version") == (0, f"samparser {__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]], ids=lambda words: " ".join(words) or "nothing")
def test_help_lists_every_verb_on_standard_output(capsys, words):
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    for verb, text in VERBS.items():
        assert any(line.split() == [*verb.split(), *text.split()] for line in out.splitlines())


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["tarin"], "train"),
        (["prdict", "photos/"], "predict"),
        (["data"], "data check"),
        (["data", "chekc"], "data check"),
        (["data-check"], "data check"),
        (["--hlep"], None),
        (["zzz"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistyped_verb_gets_the_nearest_one_and_the_list(capsys, words, nearest):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"samparser: error: There is no verb {words[0]!r}.")
    assert ("Did you mean" in err) == (nearest is not None)
    assert nearest is None or f"Did you mean {nearest!r}?" in err
    assert all(verb in err for verb in VERBS)


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--help"], 0), (["--version"], 0), (["tarin"], 2)], ids=str)
def test_quick_answers_import_neither_torch_nor_peft_nor_the_package(words, status):
    code = (
        "import sys, samparser_command\n"
        f"status = samparser_command.main({words!r})\n"
        "heavy = {'torch', 'peft', 'transformers', 'numpy', 'samparser'} & set(sys.modules)\n"
        "print(f'status {status}, heavy {sorted(heavy)}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == f"status {status}, heavy []", done.stderr


@pytest.mark.parametrize("module", ["samparser", "samparser.cli", "samparser_command"])
def test_the_command_also_runs_as_a_module(module):
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"samparser {__version__}\n"), done.stderr
