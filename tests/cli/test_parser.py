"""The help of a verb: grouped, every option once, required ones marked, with an example that can be run."""

import re
import shlex
from dataclasses import dataclass, field, fields
from importlib import import_module

import pytest

from samparser._options import option
from samparser.cli import VERBS
from samparser.cli.parser import SettingsParser


def module_of(verb):
    return import_module(f"samparser.cli.{verb.replace(' ', '_')}")


def help_of(verb, word="--help", capsys=None):
    with pytest.raises(SystemExit) as stop:
        module_of(verb).run([word])
    assert stop.value.code == 0
    return capsys.readouterr().out


def options_in(text):
    """The option names that begin a line of a help text."""
    return re.findall(r"^  (?:-h, )?(--\w+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_shows_every_field_once_under_the_title_of_its_dataclass(capsys, verb):
    text = help_of(verb, capsys=capsys)
    sections = dict(re.findall(r"^([a-z ]+):\n((?:  .*\n?)*)", text, flags=re.MULTILINE))
    parser = module_of(verb).parser()
    hidden = parser._hidden()
    for title, settings in parser.groups.items():
        shown = [part.name for part in fields(settings) if part.name not in hidden]
        assert options_in(sections.get(title, "")) == [f"--{name}" for name in shown]
    assert len(options_in(text)) == len(set(options_in(text)))


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_marks_required_options_and_ends_with_an_example_that_parses(capsys, verb):
    text = help_of(verb, capsys=capsys)
    parser = module_of(verb).parser()
    assert text.count("(required)") == sum(action.required for action in parser._actions)
    example = text.rstrip().splitlines()[-1]
    words = shlex.split(example)
    assert words[: 1 + len(verb.split())] == ["samparser", *verb.split()]
    assert len(parser.parse(words[1 + len(verb.split()) :])) == len(parser.groups)


@dataclass(frozen=True, kw_only=True)
class Inherited:
    """What a library brings."""

    tempo: float = option("Beats a minute.", 120.0)
    key_of: str = option("The key; 50 % of pieces are in major.", "C major")


@dataclass(frozen=True, kw_only=True)
class Piece(Inherited):
    """Play a piece."""

    COMMON = ("tempo",)

    score: str = option("The file.")
    repeat_all: bool = option("Play repeats.", True)
    loud: bool = option("Play loudly.", False)
    bars: list[int] | None = option("Only these bars.", None)
    seats: int = field(default=3, metadata={"help": "Seats."})


def piece(*words):
    return SettingsParser("play", {"the piece": Piece}, ("score",)).parse(words)


def test_a_switch_that_is_on_shows_how_to_turn_it_off_and_its_text_tells_no_opposite():
    text = SettingsParser("play", {"the piece": Piece}).format_help()
    assert re.search(r"--repeat_all \{true,false\}\s+Play repeats\. \(default: True\)", text)
    assert "--no_repeat_all" not in text
    assert re.search(r"--loud +Play loudly\.\n", text)
    assert re.search(r"--bars N \.\.\. +Only these bars\.\n", text)
    assert re.search(r"--score TEXT +The file\. \(required\)\n", text)


def test_inherited_fields_are_shown_when_they_are_common_and_all_of_them_by_help_all(capsys):
    with pytest.raises(SystemExit):
        piece("--help")
    text = capsys.readouterr().out
    assert "--tempo" in text
    assert "--help_all" in text
    assert "--key_of" not in text
    with pytest.raises(SystemExit) as stop:
        piece("--help_all")
    assert stop.value.code == 0
    assert "50 % of pieces are in major." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--no_repeat_all"], {"repeat_all": False}),
        (["--no-repeat-all"], {"repeat_all": False}),
        (["--repeat_all", "false"], {"repeat_all": False}),
        (["--repeat-all=no"], {"repeat_all": False}),
        (["--loud"], {"loud": True}),
        (["--loud", "True"], {"loud": True}),
        (["--key-of", "a-flat"], {"key_of": "a-flat"}),
        (["--key-of=a-flat minor"], {"key_of": "a-flat minor"}),
        (["--bars", "1", "2"], {"bars": [1, 2]}),
        (["--tem", "60"], {"tempo": 60.0}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_both_spellings_and_abbreviations_are_understood(words, changed):
    (settings,) = piece("sonata.xml", *words)
    assert settings == Piece(score="sonata.xml", **changed)


def test_messages_of_argparse_spell_an_option_once(capsys):
    with pytest.raises(SystemExit) as stop:
        piece("sonata.xml", "--key_of")
    assert stop.value.code == 2
    assert "argument --key_of: expected one argument" in capsys.readouterr().err


def test_a_word_that_is_no_option_is_answered_with_the_nearest_one():
    with pytest.raises(
        ValueError, match=r"no option --repeat_al_l\. Did you mean '--repeat_all'\? `samparser play --help`"
    ):
        piece("sonata.xml", "--repeat-al-l")
