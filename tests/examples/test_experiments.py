"""The experiment files of examples/compare: each can be run, and holds the paper's numbers as the paper prints them."""

import json
from pathlib import Path

import pytest

from samparser.cli import main
from samparser.compare import ExperimentError, compare, load_experiment
from samparser.methods import METHODS

FOLDER = Path(__file__).parents[2] / "examples" / "compare" / "experiments"
FILES = sorted(FOLDER.glob("*.json"))
PAPER = ("table1", "table2", "table3", "table4", "table5", "fig5")
# Table 3, row by row as printed: AO DSC, then mIoU and F1 of COCO, VOC, NWPU and WHU.
TABLE3 = {
    "zero-shot": "66.8 67.0 76.3 72.5 81.9 71.5 81.4 66.7 76.0",
    "decoder": "89.9 74.6 82.8 78.8 88.5 82.9 90.0 81.1 87.5",
    "lora": "90.2 75.2 83.1 79.5 88.9 83.8 90.7 81.9 88.2",
    "adapter": "89.2 74.9 83.1 78.9 88.6 81.9 89.4 81.2 87.7",
    "samparser": "91.1 75.0 83.2 79.6 89.2 84.2 90.9 81.9 88.4",
}
# The differences to Baseline† that the table prints in parentheses: a second reading of the same numbers.
TABLE3_DIFFERENCES = {
    "lora": "0.3 0.6 0.3 0.7 0.4 0.9 0.7 0.8 0.7",
    "adapter": "-0.7 0.3 0.3 0.1 0.1 -1.0 -0.6 0.1 0.2",
    "samparser": "1.2 0.4 0.4 0.8 0.7 1.3 0.9 0.8 0.9",
}
TABLE5 = {
    "zero-shot": "71.4 82.7",
    "decoder": "81.2 89.4",
    "lora": "82.4 90.1",
    "adapter": "81.8 89.9",
    "samparser": "81.6 89.6",
}


def shipped(name):
    return load_experiment(FOLDER / f"{name}.json")


def printed(experiment):
    """Row -> the paper's numbers in the order of the columns."""
    columns = [(source.name, metric) for source in experiment.data for metric in source.metrics]
    return {row: [of[name].get(metric) for name, metric in columns] for row, of in experiment.paper.items()}


def numbers(lines):
    return {row: [float(word) for word in line.split()] for row, line in lines.items()}


def test_the_shipped_experiments_are_the_papers_the_miniatures_the_ablations_and_one_beyond():
    names = {path.stem for path in FILES}
    assert set(PAPER) < names
    assert {name for name in names if not name.startswith(("mini-", "ablation-"))} == {*PAPER, "beyond"}
    assert len([name for name in names if name.startswith("ablation-")]) == 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_parses_under_its_own_name_with_known_methods_and_sources(path):
    experiment = load_experiment(path)
    assert experiment.name == path.stem
    assert all(row.method in METHODS for row in experiment.methods)
    assert all("http" in source.source and source.files for source in experiment.data)
    assert experiment.notes
    if path.stem in PAPER:
        for row in experiment.methods:  # the paper trains coefficients as they are; what is only counted counts alike
            absolute = path.stem != "table4" and "parametrization" in METHODS[row.method].options
            assert row.options == ({"parametrization": "absolute"} if absolute else {})
    else:
        assert Path(experiment.model_path()).is_dir()


@pytest.mark.parametrize("path", [p for p in FILES if p.stem != "table4"], ids=lambda path: path.stem)
def test_a_data_root_without_the_data_names_files_and_source(path, tmp_path, capsys):
    arguments = ["compare", str(path), "--data_root", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    experiment = json.loads(path.read_text("utf-8"))
    for source in experiment["data"]:
        assert str(tmp_path / "none" / source["folder"]) in message
        assert f"must hold {', '.join(source['files'])}\n    from {source['source']}" in message
    assert not (tmp_path / "out").exists()


def test_table_3_holds_every_number_of_the_paper():
    experiment = shipped("table3")
    assert [source.name for source in experiment.data] == ["ao", "coco", "voc", "nwpu", "whu"]
    assert [row.method for row in experiment.methods] == list(TABLE3)
    assert printed(experiment) == numbers(TABLE3)
    decoder = printed(experiment)["decoder"]
    for row, differences in numbers(TABLE3_DIFFERENCES).items():
        assert [round(a - b, 1) for a, b in zip(printed(experiment)[row], decoder, strict=True)] == differences


def test_tables_1_2_and_5_hold_every_number_of_the_paper():
    assert printed(shipped("table1")) == numbers(
        {
            "decoder": "82.9 90.0",
            "transformer": "83.1 90.2",
            "transformer+conv": "83.3 90.3",
            "samparser": "84.2 90.9",
        }
    )
    table2 = shipped("table2")
    assert printed(table2) == {
        "decoder": [82.9, None],
        "samparser": [84.2, None],
        "bases": [84.9, None],
        "bases+coefficients": [85.3, None],
    }
    assert [row.paper_trained_k for row in table2.methods] == [3963.2, 3963.7, 4852.4, 4852.9]
    assert printed(shipped("table5")) == numbers(TABLE5)


def test_figure_5_has_three_scenarios_and_the_numbers_of_table_3():
    experiment, table3 = shipped("fig5"), shipped("table3")
    assert [source.name for source in experiment.data] == ["voc", "nwpu", "ao"]
    assert experiment.panels.rows == ["zero-shot", "decoder", "lora", "samparser"]
    assert experiment.data == tuple(table3.source(name) for name in ("voc", "nwpu", "ao"))
    assert all(experiment.paper[row][name] == table3.paper[row][name] for row in experiment.paper for name in
               ("voc", "nwpu", "ao"))  # fmt: skip


def test_the_papers_recipes_splits_and_prompts_are_those_of_its_section_5():
    table3 = shipped("table3")
    recipes = {source.name: source.training["recipe"] for source in table3.data}
    natural, remote = "natural", "remote-sensing"
    assert recipes == {"ao": "medical", "coco": natural, "voc": natural, "nwpu": remote, "whu": remote}
    assert table3.source("nwpu").options["val_ratio"] == 0.3
    assert table3.source("ao").options["val_ratio"] == 0.2
    assert {(source.train_split, source.test_split) for source in table3.data} == {("train", "val")}
    medical = table3.train_settings(table3.source("ao"), table3.row("samparser"))
    assert (medical.learning_rate, medical.coefficient_lr, medical.weight_decay) == (1e-6, 1e-6, 5e-4)
    assert (medical.num_train_epochs, medical.lambda_focal, medical.per_device_train_batch_size) == (25, 0, 1)
    others = table3.train_settings(table3.source("whu"), table3.row("lora"))
    assert (others.learning_rate, others.weight_decay, others.num_train_epochs, others.per_device_train_batch_size) == (
        1.5e-4,
        5e-5,
        10,
        1,
    )
    prompts = table3.prompt_settings(table3.source("coco"), table3.row("lora"))
    assert (prompts.prompt, prompts.jitter_min, prompts.jitter_max) == ("box", 0, 20)


def test_table_4_is_counted_without_data_or_weights(tmp_path):
    experiment = shipped("table4")
    paper = {row.name: (row.paper_trained_k, row.paper_gmac) for row in experiment.methods if row.paper_gmac}
    assert paper == {
        "decoder": (3963.2, 374.9),
        "lora": (4080.2, 375.7),
        "adapter": (7477.7, 389.6),
        "samparser": (3963.7, 375.5),
    }
    from samparser.compare import select

    report = compare(select(experiment, None, ["samparser"], None), output=tmp_path, say=lambda line: None)
    costs = report.costs
    assert (costs["decoder"]["trained"], costs["samparser"]["trained"]) == (4_058_340, 4_058_852)
    assert costs["samparser"]["macs"]["merged"] == costs["decoder"]["macs"]["forward"]
    row = next(line for line in (tmp_path / "table4.md").read_text("utf-8").splitlines() if "SAM-PARSER" in line)
    assert row.startswith("| SAM-PARSER | 3963.7 | 3963.7 | +0.5 | +0.5 |")
    assert "| +0.54 | +0.6 | +0.00 |" in row


def test_a_model_without_a_configuration_cannot_be_counted(tmp_path):
    content = json.loads((FOLDER / "table4.json").read_text("utf-8"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "own.json").write_text(json.dumps({**content, "model": "empty"}))
    with pytest.raises(ExperimentError, match=r"'empty' has no configuration that can be read"):
        compare(load_experiment(tmp_path / "own.json"), output=tmp_path / "out", say=lambda line: None)


def test_code_beside_a_configuration_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch):
    content = json.loads((FOLDER / "table4.json").read_text("utf-8"))
    (tmp_path / "mine").mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    (tmp_path / "own.json").write_text(json.dumps({**content, "model": "mine"}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ExperimentError, match=r"'mine' has no configuration that can be read"):
        compare(load_experiment(tmp_path / "own.json"), output=tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "ran").exists()
