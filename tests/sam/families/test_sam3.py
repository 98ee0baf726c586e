"""SAM 3's tracker: checkpoints with the detector in them, the level that reaches no mask."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam3VideoConfig

from samparser.methods import build, load_model
from samparser.sam import family_of, load_sam
from samparser.sam.families import Sam3Tracker
from tests.sam.tiny import make_tiny, sam3_parts

BOXES = {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0]]])}


def masks(model):
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(pixel_values=pixels, multimask_output=False, **BOXES).pred_masks


def test_the_published_checkpoint_is_loaded_without_detector_and_memory(tmp_path):
    model = make_tiny("sam3_tracker")
    tracker = {"model_type": "sam3_tracker_video", "image_size": 56, **sam3_parts()}
    Sam3VideoConfig(tracker_config=tracker).save_pretrained(tmp_path)
    tensors = {"detector_model.text_projection": torch.zeros(2), "tracker_model.memory_attention.x": torch.zeros(2)}
    for name, tensor in model.state_dict().items():
        if name.startswith("vision_encoder.neck."):
            name = name.replace("vision_encoder.neck.", "tracker_neck.")
        elif name.startswith("vision_encoder."):
            name = f"detector_model.{name}"
        else:
            name = f"tracker_model.{name}"
        tensors[name] = tensor.contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="has no preprocessor_config.json"):
        loaded, processor = load_sam(tmp_path)
    assert isinstance(family_of(loaded), Sam3Tracker)
    assert loaded.config.model_type == "sam3_tracker"
    assert torch.equal(masks(loaded), masks(model))
    images = processor.image_processor
    assert (images.size["height"], images.mask_size["height"], images.image_mean) == (56, 16, [0.5, 0.5, 0.5])
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert torch.equal(masks(load_sam(tmp_path / "again")[0]), masks(model))

    build("samparser-coefficients", loaded).save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="has no preprocessor_config.json"):
        again, _ = load_model(tmp_path / "adapter")
    assert torch.equal(masks(again), masks(model))


def test_the_embedding_for_no_memory_has_no_effect_in_transformers_as_it_is():
    # If this fails, transformers has mended what becomes of the last level: masks of base and adapters change.
    model = make_tiny("sam3_tracker")
    before = masks(model)
    with torch.no_grad():
        model.no_memory_embedding.add_(10)
        model.vision_encoder.neck.fpn_layers[3].proj1.weight.add_(1)
    assert torch.equal(masks(model), before)
    model.config.vision_config.scale_factors.pop()
    del model.vision_encoder.neck.fpn_layers[3]
    assert not torch.equal(masks(model), before)
