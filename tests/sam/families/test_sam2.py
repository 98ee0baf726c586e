"""SAM 2: single masks from the head that is trained, checkpoints for videos, attention that changes its width."""

import threading

import pytest
import torch
from peft import get_peft_model
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig

from samparser.sam import Squashed, family_of, load_sam, neck_targets
from samparser.sam.families import Sam2
from samparser.tuner import SVDCoefficientConfig
from tests.sam.tiny import WIDTH, make_tiny, sam2_parts

BOXES = {"input_boxes": torch.tensor([[[4.0, 6.0, 40.0, 50.0], [10.0, 10.0, 30.0, 20.0]]] * 2)}


@pytest.fixture
def model():
    return make_tiny("sam2").requires_grad_(False)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def masks(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels, multimask_output=False, **BOXES).pred_masks


@pytest.mark.parametrize("copies", [False, True])
def test_a_single_mask_in_eval_mode_is_that_of_training(model, pixels, copies):
    if copies:
        config = SVDCoefficientConfig(target_modules=neck_targets(model), modules_to_save=["mask_decoder"])
        model = get_peft_model(model, config).eval()
    trained = masks(model.train(), pixels)
    released = masks(model.eval(), pixels)
    assert (trained - released).abs().max() > 0.1
    with family_of(model).single_mask(model):
        assert torch.equal(masks(model, pixels), trained)
    assert torch.equal(masks(model, pixels), released)
    assert family_of(model).keep_single_mask(model)
    assert torch.equal(masks(model, pixels), trained)


def test_the_released_setting_comes_back_when_the_last_of_several_threads_is_done(model, pixels):
    trained, released = masks(model.train(), pixels), masks(model.eval(), pixels)
    family, inside, leave = family_of(model), threading.Event(), threading.Event()

    def hold():
        with family.single_mask(model):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(10)
    with pytest.raises(KeyError), family.single_mask(model):
        raise KeyError
    assert torch.equal(masks(model, pixels), trained)
    leave.set()
    thread.join()
    assert torch.equal(masks(model, pixels), released)


def test_a_single_mask_can_become_the_models_own_setting(model, pixels, tmp_path):
    trained = masks(model.train(), pixels)
    family = family_of(model.eval())
    assert family.keep_single_mask(model)
    assert not family.keep_single_mask(model)
    assert torch.equal(masks(model, pixels), trained)
    model.save_pretrained(tmp_path)
    assert torch.equal(masks(family.load_model(tmp_path, model.config), pixels), trained)


def test_a_checkpoint_for_videos_is_loaded_without_its_memory(model, pixels, tmp_path):
    sizes = {
        "image_size": 64,
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_feed_forward_hidden_size": 48,
        "memory_attention_num_layers": 1,
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 48,
    }
    # transformers 5.6 takes fields for those of a prompt encoder.
    parts = sam2_parts()
    parts["mask_decoder_config"] = Sam2VideoMaskDecoderConfig(**parts["mask_decoder_config"])
    video = Sam2VideoModel(Sam2VideoConfig(**parts, **sizes))
    video.load_state_dict(model.state_dict(), strict=False)
    video.save_pretrained(tmp_path / "video")
    with pytest.warns(UserWarning, match="has no preprocessor_config.json"):
        loaded, processor = load_sam(tmp_path / "video")
    assert type(loaded) is type(model)
    assert isinstance(family_of(loaded), Sam2)
    assert loaded.config.model_type == "sam2"
    assert processor.image_processor.size == {"height": 64, "width": 64}
    assert torch.equal(masks(loaded, pixels), masks(model, pixels))
    with pytest.raises(TypeError, match=r"got a Sam2VideoModel\. It follows objects through a video"):
        family_of(video)


def test_the_rows_of_the_fused_projection_follow_the_width_after_it(model):
    sites = family_of(model).attention_layers(model)
    widths = [(site.query.linear.in_features, site.query.rows, site.value.rows) for site in sites]
    assert widths[:2] == [(8, slice(0, 8), slice(16, 24)), (8, slice(0, 16), slice(32, 48))]
    assert sum(inside != rows.stop for inside, rows, _ in widths) == 3
    tokens = torch.randn(1, 4, 4, 8)
    site = sites[1]
    fused = site.module.qkv(tokens).reshape(1, 16, 3, 2, 8)
    for index, part in enumerate((site.query, site.key, site.value)):
        assert torch.equal(part.linear(tokens)[..., part.rows].reshape(1, 16, 2, 8), fused[:, :, index])


def test_an_input_that_is_no_square_is_refused(model):
    family = family_of(model)
    model.config.prompt_encoder_config.image_size = [64, 64]
    assert family.frame(model) == Squashed(64)
    model.config.prompt_encoder_config.image_size = [64, 96]
    with pytest.raises(ValueError, match=r"\[64, 96\] pixels; only square ones"):
        family.frame(model.config)


def test_the_feature_maps_of_the_published_size_are_counted_without_weights():
    from transformers import Sam2Config

    shapes = Sam2().feature_shapes(Sam2Config())
    assert shapes == [(96, 256, 256), (128, 128, 192), (64, 64, 384), (32, 32, 768)]
