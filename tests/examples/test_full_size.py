"""The script that trains every family for a step at full size, on small models of two families."""

import json

import pytest

from tests.sam.tiny import TINY, make_tiny

from .test_examples import EXAMPLES, run_example


@pytest.fixture
def full_size(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda *arguments: run_example("full_size.py", monkeypatch, "--rounds", 1, *arguments)


@pytest.mark.parametrize(("model_type", "coefficients"), [("sam", 56), ("sam_hq", 56), ("sam2", 88)])
def test_a_step_moves_every_coefficient_and_features_give_its_loss(
    full_size, model_type, coefficients, tmp_path, capsys
):
    make_tiny(model_type).config.save_pretrained(tmp_path)
    full_size("--config", tmp_path, "--alone", True)
    run = json.loads(capsys.readouterr().out)
    assert run["coefficients"] == run["coefficients that moved"] == coefficients
    assert run["loss from float32 features"] == run["loss from pixels"] > 0
    assert run["last loss from the cache"] > 0
    assert run["parameters"] == sum(parameter.numel() for parameter in make_tiny(model_type).parameters())
    assert run["peak bytes"] > 1e8
    assert min(run["encoding seconds"], run["step from pixels seconds"], run["step from features seconds"]) > 0


def test_each_model_runs_in_a_process_of_its_own_and_is_a_row(full_size, tmp_path, capsys):
    make_tiny("sam").config.save_pretrained(tmp_path)
    full_size("--config", tmp_path)
    header, _, row = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["coefficients, moved"] == "56, 56"
    assert cells["the same from features"] == "bit for bit"
    assert cells["loss, finite"].endswith("yes")
    assert cells["ratio"].startswith("1/")


def test_a_size_that_does_not_exist_is_named(full_size):
    with pytest.raises(ValueError, match=r"no size sam-vit-tiny; there are sam-vit-base, sam-hq-vit-base"):
        full_size("--family", "sam-vit-tiny")


@pytest.mark.skipif("edgetam" not in TINY, reason="this transformers does not read EdgeTAM's configuration offline")
def test_a_model_that_needs_a_missing_package_is_left_out_with_the_reason(full_size, monkeypatch, capsys):
    import transformers

    def missing(*_):
        raise ImportError("it needs the timm\n library")

    monkeypatch.setattr(transformers, "EdgeTamModel", missing)
    full_size("--family", "edgetam", "--alone", True)
    assert json.loads(capsys.readouterr().out) == {"missing": "it needs the timm library"}
