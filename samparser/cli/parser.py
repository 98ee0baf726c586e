"""Options of a verb from settings dataclasses: a group for each dataclass, one spelling for each option."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from transformers import HfArgumentParser

from samparser._words import did_you_mean

from .speaking import say


class ParserExit(SystemExit):
    """Help was asked for, or a mistake in the options has been told: no other code ends a verb like this."""


class SettingsParser(HfArgumentParser):
    """HfArgumentParser with a help that is grouped, marks required options, and shows each option once.

    Options may be written with dashes too (`--train-split`); help and messages spell them with underscores, as Python.

    Args:
        verb: The verb whose options these are.
        groups: The settings dataclasses, by the title of their group in the help.
        positional: Required options whose names can be left out when they come first; the last one may take several
            words.
        example: A command to show below the help.
        required: Options that this verb needs although their dataclass has a default for them.
    """

    def __init__(
        self,
        verb: str,
        groups: Mapping[str, type],
        positional: Sequence[str] = (),
        example: str = "",
        required: Sequence[str] = (),
    ) -> None:
        self.verb = verb
        self.groups = groups
        self.positional = tuple(positional)
        self.show_all = False
        words = " ".join(["samparser", verb, *(name.upper() for name in positional), "[options]"])
        # The parsers' own groups are not used: `format_help` writes the groups, with other titles and fewer options.
        super().__init__(
            list(groups.values()),
            prog=f"samparser {verb}",
            usage=words,
            description=next(iter(groups.values())).__doc__,
            epilog=f"example:\n  {example}" if example else None,
            formatter_class=_Formatter,
            add_help=False,
        )
        self.add_argument("-h", "--help", action=_Help, help="Show this help.")
        if self._hidden():
            self.add_argument("--help_all", action=_Help, help="Show every option, those of transformers too.")
        self.add_argument("--traceback", action="store_true", help="Show where an error arose.")
        for action in self._actions:
            action.required = action.required or action.dest in required

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an option without the twin that is spelled with dashes; `parse` takes both spellings."""
        once = [name for name in names if "-" not in name.lstrip("-")]
        return super().add_argument(*(once or names), **options)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the program as argparse does, told apart from other code that ends it."""
        if message:
            sys.stderr.write(message)
        raise ParserExit(status)

    def error(self, message: str) -> NoReturn:
        """End the program with usage and message, which one of several processes says for all."""
        say(f"{self.format_usage()}{self.prog}: error: {message}")
        self.exit(2)

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Return one instance of each dataclass.

        Raises:
            ValueError: A word is no option, or a value does not fit its settings.
            SystemExit: Help was asked for (status 0), or argparse found a mistake and said so (status 2).
        """
        words = self._named([_underscored(word) for word in arguments])
        known = {option for action in self._actions for option in action.option_strings}
        for word in words:
            option = word.partition("=")[0]
            # Abbreviations are argparse's to resolve, and negative numbers are values.
            if re.match(r"--?[A-Za-z]", option) and not any(name.startswith(option) for name in known):
                raise ValueError(
                    f"There is no option {option}.{did_you_mean(option, known)} "
                    f"`samparser {self.verb} --help` lists the options."
                )
        return self.parse_args_into_dataclasses(args=words, look_for_args_file=False)[: len(self.groups)]

    def _named(self, words: list[str]) -> list[str]:
        """Put the names before leading values: `merge ADAPTER OUT` reads like a sentence."""
        leading = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        given, named = words[:leading], words[leading:]
        if given and not self.positional:
            raise ValueError(f"{given[0]!r} is not an option; `samparser {self.verb} --help` lists the options.")
        for number, name in enumerate(self.positional):
            values = given[number:] if number == len(self.positional) - 1 else given[number : number + 1]
            named += [f"--{name}", *values] if values else []
        return named

    def _hidden(self) -> set[str]:
        """Fields that a dataclass inherits and does not count among the common ones: `--help_all` shows them."""
        return {
            part.name
            for settings in self.groups.values()
            for part in fields(settings)
            if part.name not in settings.__annotations__ and part.name not in getattr(settings, "COMMON", ())
        }

    def format_help(self) -> str:
        """Return the help, a section for each dataclass."""
        hidden = set() if self.show_all else self._hidden()
        formatter = _Formatter(self.prog)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        names = {title: {part.name for part in fields(settings)} for title, settings in self.groups.items()}
        names["help"] = {"help", "help_all", "traceback"}
        for title, group in names.items():
            formatter.start_section(title)
            # The twin --no_x of a switch that is on by default would tell the opposite of its text: --x false does it.
            shown = [a for a in self._actions if a.dest in group - hidden and a.option_strings[0] != f"--no_{a.dest}"]
            formatter.add_arguments(shown)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    option, equals, value = word.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


class _Help(argparse.Action):
    """Prints the help and ends; `--help_all` with every option."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.dest = dest

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.show_all = option_string == "--help_all"
        parser.print_help()
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Writes an option as `--name KIND  text (required)` or `(default: value)`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return ", ".join(action.option_strings) + _value(action)

    def _expand_help(self, action: argparse.Action) -> str:
        # argparse formats the text with %, which ours need not escape.
        text = str(action.help or "").replace("%%", "%")
        if action.required:
            return f"{text} (required)"
        shown = action.default not in (None, False, argparse.SUPPRESS, [])
        return f"{text} (default: {action.default})" if shown else text


def _value(action: argparse.Action) -> str:
    """What follows an option's name: the choices, or the kind of value."""
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return " {" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == "?":
        return "" if action.default is False else " {true,false}"
    kind = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[call-overload]
    return f" {kind} ..." if action.nargs == "+" else f" {kind}"
