"""Square image processors against a resize written pixel by pixel, and the files that transformers 5.23 writes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.utils import is_torchvision_available

from samparser.sam.square_processor import HALF, IMAGENET_MEAN, IMAGENET_STD, SquareImageProcessor, SquareProcessor
from samparser.sam.square_settings import is_square
from tests.conftest import make_tiny_sam
from tests.reference.antialiased_resize import resized

# What `Sam2Processor(Sam2ImageProcessor()).save_pretrained(folder)` of transformers 5.23 writes.
SAM2_FILE = {
    "image_processor": {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "Sam2ImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "mask_size": {"height": 256, "width": 256},
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 1024, "width": 1024},
    },
    "point_pad_value": -10,
    "processor_class": "Sam2Processor",
    "target_size": 1024,
}
SAM3_FILE = {
    "image_processor": {
        **SAM2_FILE["image_processor"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Sam3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "mask_size": {"height": 288, "width": 288},
        "size": {"height": 1008, "width": 1008},
    },
    "point_pad_value": -10,
    "processor_class": "Sam3TrackerProcessor",
    "target_size": 1008,
}
# As the published SAM 2.1 checkpoints have it: written by transformers 4.56.
OLDER_FILE = {
    **SAM2_FILE["image_processor"],
    "image_processor_type": "Sam2ImageProcessorFast",
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_pad": None,
    "input_data_format": None,
    "pad_size": None,
    "processor_class": "Sam2VideoProcessor",
    "return_tensors": None,
}


def make_sam3() -> SquareProcessor:
    return SquareProcessor(
        SquareImageProcessor(1008, HALF, HALF, mask_size=288, image_processor_type="Sam3ImageProcessor")
    )


def picture(*size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(40, 60), (7, 5), (16, 16), (90, 3), (1, 1)])
@pytest.mark.parametrize("side", [16, 28])
def test_pixels_are_those_of_the_definition(size, side):
    """torch rounds to whole grey levels after each axis, so a value may be one level away."""
    image = picture(*size)
    encoded = SquareImageProcessor(side)(image, return_tensors="pt", input_data_format="channels_last")
    assert encoded["original_sizes"].tolist() == [list(size)]
    pixels = encoded["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((1, 3, side, side), torch.float32)
    grey = (pixels[0].permute(1, 2, 0).double().numpy() * IMAGENET_STD + IMAGENET_MEAN) * 255
    assert np.abs(grey - np.rint(grey)).max() < 1e-4
    away = np.abs(grey - resized(image, (side, side)))
    assert away.max() < 1.05
    assert away.mean() < 0.4


def test_scaling_is_what_the_switches_say():
    image = picture(8, 8)
    values = image.transpose(2, 0, 1)[None].astype(np.float64)
    half = {"image_mean": HALF, "image_std": HALF}

    def pixels(**settings):
        return SquareImageProcessor(8, **settings)(image)["pixel_values"].double().numpy()

    assert np.allclose(pixels(**half), values / 127.5 - 1, atol=1e-6)
    assert np.allclose(pixels(do_normalize=False), values / 255, atol=1e-6)
    assert np.array_equal(pixels(do_normalize=False, do_rescale=False), values)
    assert np.allclose(pixels(do_rescale=False, **half), (values - 0.5) / 0.5, atol=1e-4)
    assert np.allclose(pixels(rescale_factor=1 / 51, **half), values / 25.5 - 1, atol=1e-5)
    dark = (image // 4 + 30).astype(np.uint8)
    found = SquareImageProcessor(8, do_min_max=True, do_normalize=False)(dark)["pixel_values"]
    assert (found.min(), found.max()) == (0, 1)
    planes = dark.transpose(2, 0, 1).astype(np.float64)
    assert np.allclose(found[0].numpy(), (planes - planes.min()) / (planes.max() - planes.min()), atol=1e-6)
    flat = SquareImageProcessor(8, do_min_max=True, do_normalize=False)(np.full((4, 4, 3), 7, dtype=np.uint8))
    assert not flat["pixel_values"].any()


def test_an_image_is_taken_in_every_form():
    images, image = SquareImageProcessor(16), picture(6, 9)
    expected = images(image)["pixel_values"]
    planes = image.transpose(2, 0, 1)
    for same in (planes, torch.from_numpy(image), torch.from_numpy(planes.copy()), Image.fromarray(image), image[None]):
        assert torch.equal(images(same)["pixel_values"], expected)
    both = images([image, picture(5, 4)])
    assert both["pixel_values"].shape == (2, 3, 16, 16)
    assert both["original_sizes"].tolist() == [[6, 9], [5, 4]]
    assert torch.equal(both["pixel_values"][:1], expected)
    grey = images(image[..., 0])["pixel_values"]
    assert torch.equal(grey, images(np.repeat(image[..., :1], 3, axis=2))["pixel_values"])
    assert torch.equal(grey, images(Image.fromarray(image[..., 0]))["pixel_values"])
    fixed = image.copy()
    fixed.flags.writeable = False
    assert torch.equal(images(fixed)["pixel_values"], expected)
    few = picture(3, 3)
    assert not torch.equal(
        images(few, input_data_format="channels_last")["pixel_values"],
        images(few, input_data_format="channels_first")["pixel_values"],
    )


def test_bicubic_differs_from_bilinear_and_stays_within_grey_levels():
    image = picture(6, 9)
    pixels = SquareImageProcessor(16, resample=3, do_normalize=False)(image)["pixel_values"]
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert not torch.equal(pixels, SquareImageProcessor(16, do_normalize=False)(image)["pixel_values"])


def test_masks_go_back_in_one_bilinear_step():
    """At twice the size a bilinear step is three quarters of the nearest value and one quarter of the next."""
    logits = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = SquareImageProcessor(16)
    (found,) = images.post_process_masks(logits, [(8, 4)], binarize=False)
    rows = logits[0].repeat_interleave(2, dim=2)
    above = torch.cat([rows[:, :, :1], rows[:, :, :-1]], dim=2)
    below = torch.cat([rows[:, :, 1:], rows[:, :, -1:]], dim=2)
    odd = (torch.arange(8) % 2 == 1)[:, None]
    torch.testing.assert_close(found, 0.75 * rows + 0.25 * torch.where(odd, below, above))
    (mask,) = SquareProcessor(images).post_process_masks(logits, torch.tensor([[8, 4]]), mask_threshold=0.3)
    assert torch.equal(mask, found > 0.3)
    with pytest.raises(ValueError, match=r"got 2 for 1 images"):
        images.post_process_masks(logits, [(8, 4), (8, 4)])


@pytest.mark.parametrize(
    ("processor", "file"), [(SquareProcessor(SquareImageProcessor()), SAM2_FILE), (make_sam3(), SAM3_FILE)]
)
def test_files_are_those_of_transformers(processor, file, tmp_path):
    processor.save_pretrained(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "whole").iterdir()] == ["processor_config.json"]
    text = (tmp_path / "whole" / "processor_config.json").read_text()
    assert text == json.dumps(file, indent=2, sort_keys=True) + "\n"
    assert SquareProcessor.from_pretrained(tmp_path / "whole") == processor
    assert SquareImageProcessor.from_pretrained(tmp_path / "whole") == processor.image_processor
    processor.image_processor.save_pretrained(tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text()) == file["image_processor"]
    assert SquareProcessor.from_pretrained(tmp_path / "alone") == processor
    assert is_square(tmp_path / "alone")


def test_the_older_layout_is_read_and_a_nested_one_counts_before_it(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLDER_FILE))
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Sam2VideoProcessor", "target_size": 1024}')
    assert SquareImageProcessor.from_pretrained(tmp_path) == SquareImageProcessor()
    make_sam3().save_pretrained(tmp_path)
    assert SquareProcessor.from_pretrained(tmp_path) == make_sam3()


@pytest.mark.parametrize("settings", [{}, {"do_min_max": True, "do_normalize": False}])
def test_what_a_squashed_sam_saves_is_the_same_when_loaded_again(settings, tmp_path):
    processor = SquareProcessor(SquareImageProcessor(64, mask_size=32, **settings))
    processor.save_pretrained(tmp_path)
    again = SquareProcessor.from_pretrained(tmp_path)
    assert again == processor
    assert is_square(tmp_path)
    image = picture(20, 30)
    assert torch.equal(again(image)["pixel_values"], processor(image)["pixel_values"])
    assert make_tiny_sam()(**processor(image), multimask_output=False).pred_masks.shape == (1, 1, 1, 32, 32)


def test_transformers_does_not_read_a_scaling_that_it_has_not(tmp_path):
    SquareProcessor(SquareImageProcessor(64, do_min_max=True, do_normalize=False)).save_pretrained(tmp_path)
    make_tiny_sam().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Unrecognized processing class"):
        AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.skipif(not is_torchvision_available(), reason="transformers' processors of SAM 2 and 3 need torchvision")
@pytest.mark.parametrize("processor", [SquareProcessor(SquareImageProcessor()), make_sam3()])
def test_pixels_are_those_of_transformers(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    theirs, image = AutoProcessor.from_pretrained(tmp_path), picture(40, 60)
    assert type(theirs).__name__ == processor.to_dict()["processor_class"]
    expected = theirs(image, return_tensors="pt")
    assert torch.allclose(processor(image)["pixel_values"], expected["pixel_values"], rtol=0, atol=3e-5 / 255)


def test_a_sam_processor_is_not_square(tiny_sam_folder):
    assert not is_square(tiny_sam_folder)
    with pytest.raises(ValueError, match=r"settings of a SamImageProcessor(Pil)?,.*load theirs with SamProcessor"):
        SquareImageProcessor.from_pretrained(tiny_sam_folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 1024}}, r"size must be a square.*longest_edge"),
        ({"size": {"height": 512, "width": 256}}, r"size must be a square.*512.*256"),
        ({"size": 0}, r"size must be a square"),
        ({"image_mean": [0.5]}, r"image_mean must be three finite numbers.*\[0\.5\]"),
        ({"image_mean": "abc"}, r"image_mean has the wrong type: 'abc'"),
        ({"image_std": [0.5, 0.5, 0.0]}, r"must be above 0; got \[0\.5, 0\.5, 0\.0\]"),
        ({"resample": 1}, r"resample 1 \(Lanczos\) is not possible here; 2 \(bilinear\) and 3 \(bicubic\) are"),
        ({"do_pad": True, "do_center_crop": True}, r"asks for do_pad and do_center_crop"),
        ({"do_min_max": True}, r"set do_normalize=False"),
        ({"image_processor_type": "ViTImageProcessor"}, r"settings of a ViTImageProcessor"),
    ],
)
def test_settings_that_are_not_possible_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SquareImageProcessor.from_dict(settings)


def test_a_setting_that_is_not_known_is_named():
    with pytest.warns(UserWarning, match=r"settings 'sharpen' are not known here"):
        assert SquareImageProcessor.from_dict({"size": 8, "sharpen": 3}) == SquareImageProcessor(8)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        SquareImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(SAM2_FILE | {"target_size": 512}))
    with pytest.raises(ValueError, match=r"scales boxes and points to target_size 512"):
        SquareImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text("[1")
    with pytest.raises(OSError, match="JSON"):
        SquareImageProcessor.from_pretrained(tmp_path)


def test_images_that_do_not_fit_are_refused_by_what_they_are():
    images = SquareImageProcessor(16)
    with pytest.raises(ValueError, match=r"got torch\.float64 of shape \(4, 4, 3\)"):
        images(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"got 4 in shape \(4, 5, 4\)"):
        images(np.zeros((4, 5, 4), dtype=np.uint8), input_data_format="channels_last")
    with pytest.raises(ValueError, match=r"shape \(3, 3, 3\) may have its channels first or last"):
        images(picture(3, 3))
    with pytest.raises(ValueError, match=r"got 'last'"):
        images(picture(4, 4), input_data_format="last")
    with pytest.raises(ValueError, match=r"got 'np'"):
        images(picture(4, 4), return_tensors="np")
    with pytest.raises(ValueError, match="list is empty"):
        images([])
    with pytest.raises(ValueError, match=r"has 9 x 6 .* pixels; the model takes 16 x 16"):
        SquareImageProcessor(16, do_resize=False)(picture(6, 9))
    with pytest.raises(ValueError, match=r"Pillow's mode L"):
        SquareImageProcessor(16, do_convert_rgb=False)(Image.fromarray(picture(4, 4)[..., 0]))
    with pytest.raises(ValueError, match=r"got 1 in shape \(1, 4, 4\)"):
        SquareImageProcessor(16, do_convert_rgb=False)(picture(4, 4)[..., 0])
