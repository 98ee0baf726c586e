import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from samparser.compare import ExperimentError, compare, figure, parse_experiment, select
from samparser.compare.experiment import Panels


def quiet(line):
    pass


@pytest.fixture(scope="module")
def small(content):
    rows = [{"method": "zero-shot"}, {"method": "decoder", "label": "decoder only"}]
    given = {**json.loads(json.dumps(content)), "methods": rows, "seeds": [3, 1], "paper": {}, "search": None}
    return parse_experiment({**given, "panels": {"rows": ["decoder", "zero-shot"], "images": 2}})


def test_the_figure_shows_the_same_drawn_images_for_every_row_in_the_order_asked_for(
    small, data_root, tmp_path, monkeypatch
):
    drawn = []
    original = figure.draw_panels
    monkeypatch.setattr(figure, "draw_panels", lambda rows, path: drawn.append(rows) or original(rows, path))
    compare(small, output=tmp_path, data_root=data_root, cost=False, say=quiet)
    (panels,) = drawn
    assert [list(panel.predictions) for panel in panels] == [["decoder only", "zero-shot"]] * 2
    assert [panel.title for panel in panels] == ["Toy", "Toy"]
    assert not np.array_equal(panels[0].image, panels[1].image)
    trained, plain = panels[0].predictions.values()
    assert trained.shape == plain.shape == panels[0].truth.shape
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "small.md").read_text("utf-8")
    assert "![image, ground truth and predictions](small.png)" in page
    # The rows that are left are drawn, and a run folder that is gone is named.
    shutil.rmtree(tmp_path / "runs" / "toy--decoder--seed3")
    with pytest.raises(ExperimentError, match=r"seed3/adapter, which is not there any more. Delete .*seed3\.json"):
        compare(small, output=tmp_path, data_root=data_root, cost=False, say=quiet)
    part = replace(select(small, None, ["decoder"], None), panels=Panels(["zero-shot"]))
    compare(part, output=tmp_path, data_root=data_root, cost=False, say=quiet)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ({"rows": ["decodr"]}, "panels.rows: there is no row 'decodr'. Did you mean 'decoder'"),
        ({"rows": []}, "panels.rows must be rows with different labels, at least one"),
        ({"rows": ["decoder", "decoder"]}, "panels.rows must be rows with different labels"),
        ({"rows": ["decoder"], "images": 0}, "panels.images is 0; it must be at least 1"),
        ({"rows": ["decoder"], "pictures": 2}, "panels: there is no field 'pictures'"),
        ({}, "panels lacks rows"),
    ],
)
def test_panels_that_cannot_be_drawn_are_refused(content, panels, message):
    with pytest.raises(ExperimentError) as caught:
        parse_experiment({**json.loads(json.dumps(content)), "panels": panels})
    assert message in str(caught.value)
