"""Every example runs, for two steps."""

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image
from transformers import SamModel

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
    run_example("quickstart.py", monkeypatch, "--output", tmp_path / "out", "--max_steps", 2, "--limit", 2)
    printed = capsys.readouterr().out
    assert "reloaded adapter gives the same masks: True" in printed
    assert "trained parameters" in printed
    assert "of 2 test images gain" in printed
    assert (tmp_path / "out/run/adapter/adapter_model.safetensors").is_file()
    assert type(SamModel.from_pretrained(tmp_path / "out/merged")) is SamModel
    with Image.open(tmp_path / "out/before-after.png") as picture:
        assert picture.size[0] > 400


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


@pytest.mark.parametrize("name", ["cpu_trial.yaml", "one_gpu.yaml", "several_gpus.yaml", "two_cpu_processes.yaml"])
def test_launch_files_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(EXAMPLES / "launch" / name))
    assert config.num_processes == (1 if name in ("cpu_trial.yaml", "one_gpu.yaml") else 2)
