"""The table of methods has every method, with what is true of it, and the page names the options of the new ones."""

import inspect
import re
from pathlib import Path

import pytest

from samparser.methods import METHODS, build, describe
from samparser.methods.cost import meta_model

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


def tables():
    """The rows of each table of the page, by the title of its first column."""
    found, rows = {}, []
    for line in [*PAGE.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.setdefault(rows[0][0], []).append(rows[2:])
            rows = []
    return found


def methods():
    return {row[0].strip("`"): row[1:] for row in tables()["name"][0]}


def test_the_table_has_every_method_and_no_other():
    assert sorted(methods()) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_trains_upstream_what_merges_and_how_many_train_on_vit_b(name):
    _, parameters, upstream, merges, _ = methods()[name]
    method = METHODS[name]
    assert (upstream, merges) == tuple("yes" if is_so else "no" for is_so in (method.trains_upstream, method.mergeable))
    trained = dict(describe(build(name, meta_model())).trained)
    # All of the decoder's are a word where something else trains beside it.
    beside = trained.get("mask decoder") == 4_058_340 and name not in ("decoder", "full")
    total = sum(trained.values()) - 4_058_340 * beside
    assert parameters == f"{total:,}" + (" + decoder" if beside else "")


@pytest.mark.parametrize("name", ["expansion", "attention"])
def test_the_options_of_a_method_are_those_of_its_table(name):
    shown = [
        re.findall(r"`(\w+)`", row[0])
        for row in next(rows for rows in tables()["option"] if ("`kind`" in rows[0]) == (name == "expansion"))
    ]
    given = [option for options in shown for option in options]
    assert sorted(given) == sorted(list(inspect.signature(METHODS[name].build).parameters)[1:])
