"""A model that the tuner alone works on, given to every command: refused with what can be done with it."""

import json

import pytest

from samparser.cli import main
from samparser.methods import build


@pytest.mark.parametrize(
    "command",
    [
        "train --model {model} --data {data} --output_dir {out}",
        "evaluate {model} --data {data}",
        "evaluate {adapter} --base {model} --data {data}",
        "predict {model} {data}/val --grid 2 --output {out}",
        "merge {adapter} {out} --base {model}",
        "inspect {adapter} --base {model} --output {out}",
        "compare {experiment} --data_root {data} --output {out}",
    ],
)
def test_what_the_tuner_alone_works_on_is_refused_by_every_command(command, tiny_sam, toy_coco, tmp_path, capsys):
    model, experiment, out = tmp_path / "sam3", tmp_path / "costs.json", tmp_path / "out"
    adapter = tmp_path / "adapter"
    build("samparser-coefficients", tiny_sam).save_pretrained(adapter)
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "sam3"}))
    content = {"name": "costs", "title": "Costs", "model": str(model), "methods": [{"method": "decoder"}]}
    experiment.write_text(json.dumps(content))
    places = {"model": model, "adapter": adapter, "data": toy_coco, "experiment": experiment, "out": out}
    assert main([word.format(**places) for word in command.split()]) == 2
    message = capsys.readouterr().err
    assert "Its boxes are exemplars of a concept" in message
    assert "The tuner itself works on it: load it with transformers (Sam3Model)" in message
    assert not out.exists()
