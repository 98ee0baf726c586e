"""Tiny models with two adapters of coefficients, one of them with an expansion, and the folders they are saved in."""

import pytest
import torch
from peft import get_peft_model

from samparser import SVDCoefficientConfig
from samparser.data import DataSettings, open_dataset
from samparser.inspection import Evaluation
from samparser.methods import save_trained
from samparser.tuner import initialize_expansion
from tests.conftest import make_tiny_sam

NECK = ["vision_encoder.neck.conv1", "vision_encoder.neck.conv2"]


def move(model, seed, *, size=0.1, modules=0.02):
    """Moves every trained number of a model by noise, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = size if "svd_coefficient" in name else modules
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def tuned(seed=0, *, expansion=None, decoder=False, size=0.1, **fields):
    """A new tiny SAM with an adapter that has moved."""
    config = SVDCoefficientConfig(
        target_modules=list(fields.pop("target_modules", NECK)),
        modules_to_save=["mask_decoder"] if decoder else None,
        expansion=expansion,
        expansion_rank=6 if expansion else None,
        **fields,
    )
    model = get_peft_model(make_tiny_sam(), config)
    if expansion:
        images = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
        weights = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(8))

        def loss(model, pixels):
            return (model.get_base_model().vision_encoder(pixels)[0] * weights).mean()

        initialize_expansion(model, list(images), loss, show=False)
    return move(model, seed, size=size).eval()


@pytest.fixture
def folders(tmp_path, tiny_sam_folder):
    """Three adapter folders of one base: coefficients; coefficients and pairs; coefficients and the decoder."""

    def write(name, model):
        model.peft_config["default"].base_model_name_or_path = str(tiny_sam_folder)
        model.get_base_model().name_or_path = str(tiny_sam_folder)
        save_trained(model, tmp_path / name / "adapter")
        return tmp_path / name / "adapter"

    return {
        "plain": write("plain", tuned(0)),
        "pairs": write("pairs", tuned(1, expansion="pairs")),
        "decoder": write("decoder", tuned(2, decoder=True)),
    }


@pytest.fixture(scope="session")
def toy_val(toy_coco):
    return open_dataset(DataSettings(data=str(toy_coco)), "val")


@pytest.fixture
def evaluation(toy_val, tiny_processor):
    return Evaluation(tiny_processor, toy_val, limit=3, progress=False)
