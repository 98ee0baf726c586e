"""A new family is one class: this one's model is two convolutions, and its masks are products with embedded boxes."""

from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from torch import nn

from samparser.sam import (
    FAMILIES,
    SquareImageProcessor,
    Squashed,
    count_coefficients,
    family_of,
    neck_targets,
    register_family,
)
from samparser.sam.families import Family, config_of
from samparser.tuner import SVDCoefficientConfig

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
BOXES = {"input_boxes": torch.tensor([[[1.0, 2.0, 9.0, 8.0]]] * 2)}


class ToyModel(nn.Module):
    """Pixels, a trunk, a neck, and one mask for each box."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="toy", image_size=16)
        self.trunk = nn.Conv2d(3, 6, 4, stride=4)
        self.neck = nn.Conv2d(6, 4, 1)
        self.box = nn.Linear(4, 4)

    def get_image_embeddings(self, pixel_values):
        return self.neck(self.trunk(pixel_values).relu())

    def forward(self, pixel_values=None, image_embeddings=None, input_boxes=None, multimask_output=False):
        if image_embeddings is None:
            image_embeddings = self.get_image_embeddings(pixel_values)
        masks = torch.einsum("bnc,bchw->bnhw", self.box(input_boxes / 16), image_embeddings)[:, :, None]
        return SimpleNamespace(pred_masks=masks, iou_scores=masks.mean((-1, -2)))


class Toy(Family):
    """The family of `ToyModel`."""

    model_types = ("toy",)
    model_class = "ToyModel"
    processor_class = "ToyProcessor"
    neck = r"neck"
    neck_name = "neck"

    def frame(self, model_or_config):
        return Squashed(config_of(model_or_config).image_size)

    def processor(self, source, model):
        return SquareImageProcessor(self.frame(model).size)

    def embed(self, model, features):
        return {"image_embeddings": model.get_submodule("neck")(features[0])}

    def upstream(self, model):
        return {"trunk": model.get_submodule("trunk")}

    def feature_shapes(self, config):
        return [(6, config.image_size // 4, config.image_size // 4)]


@pytest.fixture
def toy():
    register_family(Toy())
    yield ToyModel()
    del FAMILIES["toy"]


def test_a_registered_family_answers_for_its_models(toy):
    family = family_of(toy)
    assert isinstance(family, Toy)
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
