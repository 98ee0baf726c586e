"""What the configuration accepts, refuses and saves."""

import copy
import json
import pickle
from dataclasses import fields

import pytest
from peft import PeftConfig

from samparser import SVDCoefficientConfig


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"target_modules": []}, r"target_modules is empty.*'neck'"),
        ({"target_modules": ""}, "target_modules is an empty string"),
        ({"target_modules": ["a", ""]}, "has to hold names of modules"),
        ({"target_modules": ["a", 3]}, r"target_modules=\['a', 3\] is not possible; it has to be list\[str\]"),
        (
            {"target_modules": 3},
            r"target_modules=3 is not possible; it has to be list\[str\] \| set",
        ),
        ({"modules_to_save": [0]}, r"modules_to_save=\[0\] is not possible; it has to be list\[str\] \| None"),
        ({"modules_to_save": ["((("]}, r"modules_to_save='\(\(\(' is a string and so a regular expression, but"),
        (
            {"rank_pattern": {"(((": 3}},
            r"rank_pattern='\(\(\(' is a string and so a regular expression, but",
        ),
        ({"rank_pattern": 3}, r"rank_pattern=3 is not possible; it has to be dict\[str, int\]"),
        ({"rank_pattern": {"a": "b"}}, r"rank_pattern=\{'a': 'b'\} is not possible; it has to be dict\[str, int\]"),
        ({"layers_pattern": "(", "layers_to_transform": 1}, r"layers_pattern='\(' is a string and so a regular"),
        ({"base_record": {"a": 3}}, r"base_record=\{'a': 3\} is not possible; it has to be dict"),
        ({"format_version": "1"}, "format_version='1' is not possible; it has to be int"),
        ({"save_basis": 1}, "save_basis=1 is not possible; it has to be bool"),
        ({"inference_mode": "yes"}, "inference_mode='yes' is not possible; it has to be bool"),
        ({"revision": ["main"]}, r"revision=\['main'\] is not possible; it has to be"),
        ({"weights_sha256": 7}, "weights_sha256=7 is not possible; it has to be str | None"),
        ({"target_modules": "neck.("}, r"'neck.\(' is a string and so a regular expression, but not a valid one"),
        ({"exclude_modules": [""]}, "exclude_modules.*has to hold names of modules"),
        ({"trainable": "all"}, r"trainable='all' is not possible.*'coefficients', 'bases', 'both', 'expansion'"),
        ({"parametrization": "log"}, r"parametrization='log'.*'absolute', 'offset', 'relative'"),
        ({"bias": "lora_only"}, r"bias='lora_only'.*'svd_coefficient_only'"),
        ({"base_check": "off"}, r"base_check='off'.*'refuse', 'warn'"),
        ({"rank": 0}, "rank=0 has to be a whole number of at least 1"),
        ({"rank": 2.5}, r"rank=2.5 is not possible; it has to be int \| None"),
        ({"rank_pattern": {"lin0": -1}}, r"rank_pattern\['lin0'\]=-1"),
        ({"scaling": float("nan")}, "scaling=nan is not a finite number"),
        ({"scaling": "1"}, "scaling='1' is not a finite number"),
        (
            {"layers_to_transform": [1], "target_modules": "a"},
            r"layers_to_transform=\[1\] needs target_modules as a list",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern='layers' has no effect without layers_to_transform"),
        ({"trainable": "bases", "parametrization": "relative"}, "trainable='bases' trains none"),
        ({"format_version": 99}, r"format version 99; this samparser reads up to 1.*Upgrade samparser"),
        ({"task_type": "NONSENSE"}, "Invalid task type: 'NONSENSE'"),
    ],
)
def test_what_is_not_possible_is_refused_with_what_is(choices, message):
    with pytest.raises(ValueError, match=message):
        SVDCoefficientConfig(**choices)


def test_every_field_of_ours_says_what_it_does():
    own = {field.name for field in fields(SVDCoefficientConfig)} - {field.name for field in fields(PeftConfig)}
    for field in fields(SVDCoefficientConfig):
        if field.name in own:
            assert len(field.metadata["help"]) > 25, field.name


def test_saving_and_reading_gives_the_same_configuration(tmp_path):
    config = SVDCoefficientConfig(
        target_modules=["b", "a"], rank=3, rank_pattern={"a": 2}, parametrization="relative", modules_to_save=["c"]
    )
    config.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, SVDCoefficientConfig)
    assert read == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["a", "b"]


def test_a_decision_to_go_on_with_other_weights_is_never_saved(tmp_path):
    SVDCoefficientConfig(target_modules=["a"], base_check="warn").save_pretrained(tmp_path)
    assert "base_check" not in json.loads((tmp_path / "adapter_config.json").read_text())
    assert SVDCoefficientConfig.from_pretrained(tmp_path).base_check == "refuse"


def test_copies_and_pickles_are_equal():
    config = SVDCoefficientConfig(target_modules=["a"])
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("reader", [PeftConfig, SVDCoefficientConfig])
def test_a_field_of_a_newer_release_is_ignored_with_pefts_warning_and_a_newer_format_refused(reader, tmp_path):
    SVDCoefficientConfig(target_modules=["a"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "rotation": 4}))
    with pytest.warns(UserWarning, match=r"Unexpected keyword arguments \['rotation'\] for class SVDCoefficientConfig"):
        assert reader.from_pretrained(tmp_path).target_modules == {"a"}
    path.write_text(json.dumps({**saved, "format_version": 2}))
    with pytest.raises(ValueError, match=r"adapter_config.json: The adapter has format version 2"):
        reader.from_pretrained(tmp_path)


def test_a_field_that_is_not_known_is_refused_in_code():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lora_alpha'"):
        SVDCoefficientConfig(lora_alpha=4)
