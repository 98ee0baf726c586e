"""Every example runs, for two steps."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SamModel

from samparser.data import DataSettings, open_dataset
from samparser.scoring import InstanceScore, ScoreTable

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, monkeypatch, *arguments) -> None:
    """Runs a script as `python examples/NAME ARGUMENTS` would, in this process."""
    path = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    spec = importlib.util.spec_from_file_location("__main__", path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look modules up by name.
    monkeypatch.setitem(sys.modules, "__main__", module)
    spec.loader.exec_module(module)


def test_the_quickstart_leaves_adapter_merged_model_and_picture(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run_example("quickstart.py", monkeypatch, "--output", out, "--max_steps", 2, "--limit", 2)
    printed = " ".join(capsys.readouterr().out.split())
    assert "reloaded adapter gives the same masks: True" in printed
    assert "share of the gradient's signal" in printed
    adapter = (out / "samparser-coefficients/adapter/adapter_model.safetensors").stat().st_size
    assert adapter < 2048
    cells = [cell.strip() for cell in printed.split("│")]
    assert [cells[cells.index("trained numbers") + place] for place in (3, 4)] == ["320", "377,688"]
    assert "of 2 test images gain" in printed
    assert type(SamModel.from_pretrained(out / "merged")) is SamModel
    with Image.open(out / "before-after.png") as picture:
        assert picture.size[0] > 1000


@pytest.fixture
def quickstart(monkeypatch):
    """The quickstart as a module that has not been run."""
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "quickstart", module)
    spec.loader.exec_module(module)
    return module


def test_the_quickstart_pairs_gains_by_image(quickstart):
    before, after = (
        ScoreTable(InstanceScore(f"{image}.png", "0", 1, 10, 10, common) for image, common in enumerate(commons))
        for commons in ((5, 10), (10, 5))
    )
    points = quickstart.gains(before, after)
    assert points == {"0.png": pytest.approx(200 / 3), "1.png": pytest.approx(-200 / 3)}
    assert quickstart.mean_gain({"0.png": 3.0, "1.png": 1.0}) == "+2.0 ± 1.0"
    assert quickstart.mean_gain({"0.png": -1.26}) == "-1.3"


def test_the_quickstart_draws_best_median_and_worst_gain_with_the_boxes_that_were_scored(
    quickstart, monkeypatch, tmp_path, toy_coco
):
    data = open_dataset(DataSettings(data=str(toy_coco)), "train")
    assert len(data.names) >= 3
    gained = dict(zip(data.names, [0.5, 3.0, -2.0, 1.0, 2.0, 0.7, 0.6][: len(data.names)], strict=False))
    drawn = []
    monkeypatch.setattr(quickstart, "draw_mistakes", lambda rows, path: drawn.extend(rows))
    quickstart.draw({}, None, data, gained, tmp_path / "x.png")
    ranked = sorted(gained.values(), reverse=True)
    places = (0, len(ranked) // 2, len(ranked) - 1)
    words = ("best", "median", "worst")
    assert [row.title for row in drawn] == [
        f"{word}: {ranked[place]:+.1f} points" for word, place in zip(words, places, strict=True)
    ]
    first = data[data.names.index(max(gained, key=gained.get))]
    moved = drawn[0].boxes - first.boxes
    assert (moved[:, :2] <= 0).all()
    assert (moved[:, 2:] >= 0).all()
    assert 0 < np.abs(moved).max() <= 4


def test_the_zero_shot_table_has_the_model_beside_box_and_ellipse(monkeypatch, capsys, toy_coco, tiny_sam_folder):
    run_example("zero_shot.py", monkeypatch, "--model", tiny_sam_folder, "--data", toy_coco, "--split", "val")
    lines = capsys.readouterr().out.splitlines()
    rows = {
        cells[1]: cells[2:5] for cells in ([cell.strip() for cell in line.split("|")] for line in lines if "|" in line)
    }
    assert {"the model", "the box itself", "ellipse in the box"} < set(rows)
    # The instances of this data set are ellipses: the inscribed ellipse is nearly right, its box is 4 / pi as large.
    assert float(rows["ellipse in the box"][0]) > 90
    assert 70 < float(rows["the box itself"][0]) < 85
    assert "±" in rows["ellipse in the box"][1]


def test_the_own_loop_saves_an_adapter(tmp_path, monkeypatch):
    run_example("own_loop.py", monkeypatch, "--steps", 2, "--output", tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_config.json").is_file()


def test_the_fine_tuning_recipe_writes_a_run(tmp_path, monkeypatch, toy_coco, tiny_sam_folder):
    run_example(
        "finetune.py",
        monkeypatch,
        *("--model", tiny_sam_folder, "--data", toy_coco, "--output_dir", tmp_path / "run", "--max_steps", 2),
        *("--report_to", "none", "--jitter_max", 2),
    )
    assert (tmp_path / "run/scores.json").is_file()


def test_the_fine_tuning_recipe_is_short():
    assert len((EXAMPLES / "finetune.py").read_text().splitlines()) < 120
