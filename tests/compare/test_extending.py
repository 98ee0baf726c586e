"""docs/extending.md by its word: every code block of the page is written to a file and run."""

import json
import re
import runpy
from pathlib import Path

import pytest

from samparser.cli import main
from samparser.data.layouts import LAYOUTS
from samparser.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCK = re.compile(r'^```(?:python|json) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def blocks():
    """The files of the page by name; what they register is taken back afterwards."""
    yield dict(BLOCK.findall(PAGE.read_text("utf-8")))
    METHODS.pop("neck-norms", None)
    LAYOUTS.pop("npz", None)


def test_the_code_of_the_page_runs_as_it_stands(blocks, tiny_sam_folder, tmp_path, capsys):
    assert set(blocks) == {"my_method.py", "my_layout.py", "draw_discs.py", "my_family.py", "my-experiment.json"}
    for name, text in blocks.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    experiment = tmp_path / "my-experiment.json"
    content = json.loads(experiment.read_text("utf-8"))
    # A tiny model and two steps in place of ViT-B and an epoch; nothing else is changed.
    content |= {"model": str(tiny_sam_folder)}
    content["training"] |= {"max_steps": 2, "use_cpu": True}
    experiment.write_text(json.dumps(content), encoding="utf-8")
    runpy.run_path(str(tmp_path / "draw_discs.py"))
    out = tmp_path / "discs-compared"
    assert main(["compare", str(experiment), "--output", str(out), "--no_cost"]) == 0
    page = capsys.readouterr().out
    assert "discs: 6 training and 4 test images." in page
    assert "| norms of the neck and decoder |" in page
    alone = json.loads((out / "results" / "discs--norms-alone--seed0.json").read_text("utf-8"))
    assert list(alone["trained"]["by_part"]) == ["neck"]
    assert alone["time"]["steps"] == 2
    assert (out / "my-experiment.png").read_bytes().startswith(b"\x89PNG")


def test_every_block_of_the_page_has_a_file_name_or_is_a_command(blocks):
    opened = re.findall(r"^```(\w.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(opened) == sorted(
        ["bash", 'json title="my-experiment.json"']
        + [f'python title="{name}"' for name in ("my_method.py", "my_layout.py", "draw_discs.py", "my_family.py")]
    )
