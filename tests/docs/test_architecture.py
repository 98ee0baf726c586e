"""The architecture page names files and functions that exist, and draws the floors that the linter checks."""

import ast
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ITEMS = re.findall(r"^\d+\. (.*(?:\n +.*)*)", PAGE, flags=re.MULTILINE)


def names_in(path):
    """Every name that a file defines: functions, classes, methods and what they assign."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def test_there_are_three_walks_of_ten_lines():
    walks = [re.findall(r"^\d+\.", part, flags=re.MULTILINE) for part in PAGE.split("\n## ")[1:]]
    assert [len(walk) for walk in walks] == [10, 10, 10]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: re.findall("`(.*?)`", item)[1])
def test_every_file_of_a_walk_exists_and_defines_the_name_that_follows_it(item):
    steps = re.findall(r"`([\w/]+\.py)`: `(\w+)`", item)
    assert steps
    for path, name in steps:
        assert name in names_in(ROOT / "samparser" / path), (path, name)
    defined = set().union(*(names_in(ROOT / "samparser" / path) for path, _ in steps))
    for name in re.findall(r"`([A-Za-z]+_\w+|[a-z]+[A-Z]\w+|[A-Z][a-z]+[A-Z]\w+)`", item):
        assert name in defined | {"SamModel"}, name


def test_every_path_of_the_page_exists():
    for path in re.findall(r"`([\w./]+(?:\.py|/))`", PAGE):
        assert (ROOT / path).exists() or (ROOT / "samparser" / path).exists(), path


def test_the_drawing_has_the_floors_of_the_import_contract_and_needs_no_network():
    drawing = (ROOT / "docs" / "images" / "rooms.svg").read_text(encoding="utf-8")
    assert "script" not in drawing
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", drawing) == []
    rooms = [text.text for text in ElementTree.fromstring(drawing).iter() if text.get("class") == "room"]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if "samparser.cli" in contract.get("layers", ()))
    names = [name.strip().removeprefix("samparser.") for floor in floors for name in floor.split("|")]
    assert rooms == [name for name in names if not name.startswith("_")]
