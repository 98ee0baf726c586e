"""The reference page as it is built: every field of every setting, every example as code."""

import ast
import doctest
import html
import inspect
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from samparser import SVDCoefficientConfig
from samparser.cli import VERBS
from samparser.data import DataSettings
from samparser.prompts import PromptSettings
from samparser.training import AlsoSettings, EvalSettings, TrainSettings

ROOT = Path(__file__).parents[2]
COMMANDS = [
    next(iter(import_module(f"samparser.cli.{verb.replace(' ', '_')}").parser().groups.values())) for verb in VERBS
]
SETTINGS = [SVDCoefficientConfig, DataSettings, PromptSettings, TrainSettings, EvalSettings, AlsoSettings]
SETTINGS += [command for command in COMMANDS if fields(command)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The reference page, built as `make docs` builds it."""
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not list(site.rglob("*.py"))
    return (site / "reference" / "index.html").read_text(encoding="utf-8")


class Tables(HTMLParser):
    """The rows of every table, as lists of the cells' texts, by the heading that comes before it."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.heading, self.cell = {}, "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("h2", "h3", "h4"):
            self.heading = dict(attributes).get("id", "")
        elif tag == "tr":
            self.rows.setdefault(self.heading, []).append([])
        elif tag == "td":
            self.cell = ""

    def handle_endtag(self, tag):
        if tag == "td":
            self.rows[self.heading][-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data


def own(settings):
    """The fields that a class declares itself; what it inherits is documented elsewhere."""
    return [part for part in fields(settings) if part.name in settings.__annotations__]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_every_field_stands_on_the_page_with_its_default_and_its_help(page, settings):
    tables = Tables(page).rows
    name = f"samparser.{settings.__name__}" if settings is SVDCoefficientConfig else None
    headings = [heading for heading in tables if heading == name or heading.endswith(f".{settings.__name__}")]
    assert len(headings) == 1, headings
    rows = {row[0]: row[1:] for row in tables[headings[0]] if row and row[0] != "ValueError"}
    assert list(rows) == [part.name for part in own(settings)]
    for part in own(settings):
        kind, text, default = rows[part.name]
        assert kind
        assert text == " ".join(part.metadata["help"].replace("`", "").split())
        if part.default_factory is not MISSING:
            assert default == repr(part.default_factory())
        else:
            assert default == ("required" if part.default is MISSING else repr(part.default))


def test_examples_are_set_as_code_and_none_is_lost(page):
    text = re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert "&gt;&gt;&gt;" not in text
    blocks = [
        html.unescape(re.sub(r"<[^>]+>", "", block)) for block in re.findall(r"<pre.*?</pre>", page, flags=re.DOTALL)
    ]
    lines = {line[4:] for block in blocks for line in block.splitlines() if line.startswith(">>> ")}
    documented = [module_and_name(path) for path in re.findall(r'<h[34] id="(samparser[\w.]+)"', page)]
    expected = [
        example.source.splitlines()[0]
        for thing in documented
        if isinstance(thing, type | FunctionType | ModuleType)
        for example in doctest.DocTestParser().get_examples(inspect.getdoc(thing) or "")
    ]
    assert len(expected) > 10
    assert set(expected) <= lines


def module_and_name(path):
    """What a heading of the page stands for, imported."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            thing = inspect.getattr_static(thing, name, None) or getattr(thing, name)
        return getattr(thing, "fget", None) or thing
    raise AssertionError(path)


def test_no_role_of_sphinx_is_on_the_page(page):
    assert re.findall(r":(?:class|func|meth|mod|data|attr|obj|exc|ref):", page) == []


def test_every_name_of_the_page_s_source_is_on_the_page(page):
    directives = re.findall(r"^::: ([\w.]+)", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    assert len(directives) == len(set(directives))
    for name in directives:
        assert f'id="{name}"' in page


def test_docstrings_are_markdown_without_roles():
    """The site is Markdown: a role of Sphinx would be shown as it is written."""
    found = []
    for path in (ROOT / "samparser").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                role = re.search(r":(class|func|meth|mod|data|attr|obj|exc|ref):", ast.get_docstring(node) or "")
                if role:
                    found.append(f"{path.relative_to(ROOT)}: {role[0]} in {getattr(node, 'name', 'the module')}")
    assert found == []
