"""The rooms: each offers its own names and no other room's, and what importing one costs."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

import samparser

ROOMS = (
    "compare",
    "data",
    "data_check",
    "drawing",
    "features",
    "inspection",
    "methods",
    "prediction",
    "prompts",
    "sam",
    "scoring",
    "training",
    "tuner",
)
# Rooms that work where only the core dependencies are installed.
BARE = ("drawing", "features", "prediction", "prompts", "sam", "scoring")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists_and_lives_in_the_room(room):
    module = import_module(f"samparser.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        home = getattr(value, "__module__", module.__name__)
        assert home.startswith((f"samparser.{room}", "samparser._")), name
    assert len(set(module.__all__)) == len(module.__all__)


def test_every_room_is_tested():
    packages = {path.parent.name for path in Path(samparser.__file__).parent.glob("*/__init__.py")}
    assert packages == {*ROOMS, "cli"}


def test_an_unknown_name_is_answered_with_the_known_ones():
    prompts = import_module("samparser.prompts")
    with pytest.raises(AttributeError, match=r"has no attribute 'colate'; it offers .*collate"):
        _ = prompts.colate


def imported_at_the_top(path):
    """Top-level packages that a file imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("room", BARE)
def test_importing_a_module_of_a_bare_room_needs_the_core_dependencies_only(room):
    files = list((Path(samparser.__file__).parent / room).glob("*.py"))
    assert len(files) > 3
    allowed = set(sys.stdlib_module_names) | {"numpy", "torch", "samparser", "safetensors"}
    assert {name for path in files for name in imported_at_the_top(path)} <= allowed
