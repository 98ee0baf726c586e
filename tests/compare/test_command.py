import json

from samparser.cli import main


def test_the_command_runs_a_part_of_an_experiment_and_prints_its_page(content, data_root, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps(content))
    given = ["compare", tmp_path / "small.json", "--data_root", data_root, "--output", tmp_path / "out", "--seeds", 1]
    given += ["--limit", 2, "--epochs", 0.5, "--rows", "zero-shot", "--data", "toy", "--no_cost"]
    assert main([str(word) for word in given]) == 0
    out = capsys.readouterr().out
    assert "[4/4] toy, decoder, seed 0: mIoU" in out
    assert "Toy: 2 training and 2 test images." in out
    assert "| decoder only |" in out
    assert (tmp_path / "out" / "small.md").read_text("utf-8") in out
    assert json.loads((tmp_path / "out" / "small.json").read_text("utf-8"))["experiment"]["seeds"] == [0]


def test_a_mistake_in_the_experiment_ends_with_one_message(content, tmp_path, capsys):
    (tmp_path / "small.json").write_text(json.dumps({**content, "sedes": []}))
    assert main(["compare", str(tmp_path / "small.json"), "--output", str(tmp_path / "out")]) == 2
    assert "samparser compare: error: small.json: there is no field 'sedes'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
