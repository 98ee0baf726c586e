import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from samparser import SVDCoefficientConfig
from samparser.data import DataSettings, open_dataset
from samparser.prompts import PromptSettings
from samparser.training import TrainSettings, train

from ..conftest import make_tiny_sam

# Boxes jittered by up to 2 pixels and a random choice of 2 of the 3 instances: every source of randomness is on.
PROMPTS = PromptSettings(jitter_max=2, max_instances=2)


@pytest.fixture(scope="session")
def toy_sets(toy_coco):
    data = DataSettings(data=str(toy_coco))
    return open_dataset(data, "train"), open_dataset(data, "val")


@pytest.fixture
def run_tiny(toy_sets, tiny_processor, tmp_path):
    """Trains a tiny SAM's coefficients and decoder on the toy data; returns result and model."""

    def run(output="run", *, with_eval=False, model=None, resume=False, overwrite=False, **settings):
        model = model or get_peft_model(
            make_tiny_sam(), SVDCoefficientConfig(target_modules=["neck"], modules_to_save=["mask_decoder"])
        )
        settings = TrainSettings(
            **{
                "output_dir": str(tmp_path / output),
                "learning_rate": 1e-3,
                "coefficient_lr": 1e-2,
                "num_train_epochs": 1,
                "report_to": "none",
                "logging_steps": 1,
                **settings,
            }
        )
        train_set, eval_set = toy_sets
        result = train(
            model,
            tiny_processor,
            train_set,
            eval_set if with_eval else None,
            settings,
            prompts=PROMPTS,
            resume=resume,
            overwrite=overwrite,
        )
        return result, model

    return run


def adapter_tensors(result) -> dict[str, torch.Tensor]:
    return load_file(result.folder.adapter / "adapter_model.safetensors")
