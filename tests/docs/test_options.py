"""Every `samparser VERB --option` that README and docs show is one that the verb takes."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from samparser.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def parser(verb):
    return import_module(f"samparser.cli.{verb.replace(' ', '_')}").parser()


def options(verb):
    return {option for action in parser(verb)._actions for option in action.option_strings}


def commands(text):
    """The words of every `samparser` command in the text's code, as lists."""
    # A command is a line of a block, or stands in backticks; launchers name the module instead.
    blocks = re.findall(r"^```.*?^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines()
    found = [found for line in lines for found in re.findall(r"^samparser .*|-m samparser(?:\.cli)? .*", line)]
    for command in found + re.findall(r"(?<!`)`(samparser [^`\n]*)`", text):
        yield ["samparser", *shlex.split(command.removeprefix("-m "), comments=True)[1:]]


def test_the_commands_of_a_page_are_found():
    text = "Run `samparser predict A b --grid 2`, or\n```bash\nsamparser train --x \\\n  --y '1 2'  # why\n```"
    assert list(commands(text)) == [
        ["samparser", "train", "--x", "--y", "1 2"],
        ["samparser", "predict", "A", "b", "--grid", "2"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_use_verbs_and_options_that_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        if words[1] in ("VERB", "--help", "--version"):
            continue
        verb = next((verb for verb in VERBS if words[1 : 1 + len(verb.split())] == verb.split()), None)
        assert verb is not None, words
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in options(verb), words


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_options_in_the_text_are_those_of_some_verb_or_example(page):
    known = set().union(*map(options, VERBS))
    for path in (ROOT / "examples").rglob("*.py"):
        known |= {f"--{name}" for name in re.findall(r"^    (\w+): ", path.read_text(), flags=re.MULTILINE)}
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = [name.replace("-", "_").replace("__", "--", 1) for name in re.findall(r"`(--[\w-]+)", text)]
    assert [name for name in named if name not in known] == []


def test_the_pages_show_every_verb():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {" ".join(words[1:3]) if words[1] == "data" else words[1] for words in commands(text)} >= set(VERBS)
