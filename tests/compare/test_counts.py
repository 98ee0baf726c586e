"""Counting the rows of an experiment without data: on every family, from its configuration alone."""

import json

import pytest

from samparser.compare import ExperimentError, compare, parse_experiment
from samparser.methods.cost import method_cost
from tests.sam.tiny import TINY, make_tiny


def experiment(folder, *methods):
    return parse_experiment(
        {"name": "costs", "title": "Costs", "model": str(folder), "data": [], "methods": list(methods)}
    )


def count(folder, *methods):
    return compare(experiment(folder, *methods), output=folder / "out", say=lambda line: None).costs


@pytest.mark.parametrize("model_type", TINY)
def test_rows_are_counted_on_every_family_from_its_configuration(model_type, tmp_path):
    model = make_tiny(model_type)
    model.config.save_pretrained(tmp_path)
    costs = count(tmp_path, {"method": "decoder"}, {"method": "samparser"})
    decoder = sum(parameter.numel() for parameter in model.mask_decoder.parameters())
    expected = method_cost("samparser", config=model.config)
    assert costs["decoder"]["trained"] == decoder
    assert costs["samparser"]["trained"] == expected.trained
    assert costs["samparser"]["macs"]["step"] == expected.step_macs
    assert costs["samparser"]["macs"]["merged"] == costs["decoder"]["macs"]["forward"]
    assert (tmp_path / "out" / "costs.md").is_file()


def test_a_method_that_the_family_lacks_is_refused_before_anything_is_counted(tmp_path):
    make_tiny("edgetam").config.save_pretrained(tmp_path)
    said = []
    with pytest.raises(ExperimentError, match=r"lora: method 'lora' cannot be applied.*convolutional network"):
        compare(
            experiment(tmp_path, {"method": "decoder"}, {"method": "lora"}), output=tmp_path / "out", say=said.append
        )
    assert said == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "sam3"},
            r"is of no family\. Counting needs the config of a SamModel or .*exemplars of a concept",
        ),
        ({"model_type": "bert"}, r"is of no family\. Counting needs .*got a BertConfig of type 'bert'"),
    ],
)
def test_a_model_of_no_family_is_refused_with_what_can_be_done(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExperimentError, match=message):
        count(tmp_path, {"method": "decoder"})


def test_a_package_that_a_configuration_needs_is_named(tmp_path, monkeypatch):
    def needs_timm(*_, **__):
        raise ImportError("TimmWrapperModel requires the timm library")

    monkeypatch.setattr("samparser.compare.counts.AutoConfig.from_pretrained", needs_timm)
    with pytest.raises(ExperimentError, match="needs a package that is not installed: TimmWrapperModel requires"):
        count(tmp_path, {"method": "decoder"})
