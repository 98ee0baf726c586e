"""A new family is one class: that of docs/extending.md, whose code is run as it stands."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from samparser.sam import FAMILIES, count_coefficients, family_of, neck_targets
from samparser.tuner import SVDCoefficientConfig

PAGE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text("utf-8")
CODE = re.search(r'^```python title="my_family.py"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)[1]
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BOXES = {"input_boxes": torch.tensor([[[1.0, 2.0, 9.0, 8.0]]] * 2)}


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "my_family.py").write_text(CODE, encoding="utf-8")
    page = runpy.run_path(str(tmp_path / "my_family.py"))
    yield page["ToyModel"]()
    del FAMILIES["toy"]


def test_a_registered_family_answers_for_its_models(toy):
    family = family_of(toy)
    assert type(family).__name__ == "Toy"
    features = family.encode(toy, PIXELS)
    assert [tuple(tensor.shape[1:]) for tensor in features] == family.feature_shapes(toy.config)
    logits, _ = family.decode(toy, family.embed(toy, features), BOXES)
    assert torch.equal(logits, toy(pixel_values=PIXELS, **BOXES).pred_masks)
    assert list(family.attention_layers(toy)) == []
    with family.single_mask(toy):
        assert not family.keep_single_mask(toy)


def test_its_neck_is_tuned_by_coefficients(toy):
    assert (neck_targets(toy), count_coefficients(toy)) == (["neck"], 4)
    model = get_peft_model(toy, SVDCoefficientConfig(target_modules=neck_targets(toy)))
    family = family_of(model)
    family.decode(model, family.embed(model, family.encode(model, PIXELS)), BOXES)[0].mean().backward()
    assert [p.grad.shape for p in model.parameters() if p.requires_grad] == [(4,)]


def test_a_family_and_its_model_take_about_60_lines():
    assert len(CODE.splitlines()) <= 60
