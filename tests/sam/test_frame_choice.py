"""Folders that do not say how images are taken ask, and what was chosen is used."""

import re
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig

from samparser.sam import (
    FAMILIES,
    Padded,
    SquareImageProcessor,
    SquareProcessor,
    Squashed,
    chosen_frame,
    default_processor,
    frame_of,
    image_processor,
    load_sam,
)
from samparser.sam.families.sam import Sam
from samparser.sam.frame_choice import choose_frame
from tests.sam.tiny import TINY, make_tiny

IMAGE = np.random.default_rng(0).integers(30, 200, (30, 50, 3), dtype=np.uint8)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
PADDED = ("sam", "sam_hq")


def pixels(processor):
    return image_processor(processor)(IMAGE, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


@pytest.fixture
def bare(tiny_sam_folder, tmp_path):
    """The tiny checkpoint without its processor."""
    ignore = shutil.ignore_patterns(*PROCESSOR_FILES)
    return shutil.copytree(tiny_sam_folder, tmp_path / "bare", ignore=ignore)


@pytest.mark.parametrize("model_type", TINY)
def test_a_folder_without_processor_asks_where_there_is_a_choice(model_type, tmp_path):
    model = make_tiny(model_type)
    model.save_pretrained(tmp_path)
    if model_type in PADDED:
        with pytest.raises(ValueError, match=r"--frame .*padded .*squashed .*medsam"):
            load_sam(tmp_path)
        processor = load_sam(tmp_path, frame="padded")[1]
    else:
        with pytest.warns(UserWarning, match=rf"usual processor of a {FAMILIES[model_type].model_class} for"):
            processor = load_sam(tmp_path)[1]
        with pytest.raises(ValueError, match=r"frame is 'padded', but a .* takes images squashed"):
            load_sam(tmp_path, frame="padded")
    assert torch.equal(pixels(processor), pixels(default_processor(model)))


@pytest.mark.parametrize(
    ("frame", "kind"), [("padded", Padded), ("squashed", Squashed), ("medsam", Squashed), (None, Padded)]
)
def test_the_choice_decides_the_frame_and_stays_with_the_model(frame, kind, tiny_sam_folder):
    model, processor = load_sam(tiny_sam_folder, frame=frame)
    assert frame_of(processor) == kind(64)
    assert chosen_frame(model) == frame


def test_another_choice_than_there_is_is_named(tiny_sam):
    with pytest.raises(ValueError, match=r"no frame 'stretched'; choose padded .*squashed .*medsam"):
        choose_frame(tiny_sam, "stretched")


def test_squashed_images_keep_the_colours_of_the_saved_processor(tiny_sam, tiny_processor):
    usual = pixels(choose_frame(tiny_sam, "squashed"))
    assert torch.equal(usual, pixels(choose_frame(tiny_sam, "squashed", tiny_processor)))
    assert torch.equal(usual, pixels(SquareImageProcessor(64)))
    plain = default_processor(tiny_sam)
    plain.image_processor.do_normalize = False
    assert torch.equal(
        pixels(choose_frame(tiny_sam, "squashed", plain)), pixels(SquareImageProcessor(64, do_normalize=False))
    )


def test_medsams_images_go_from_0_to_1(tiny_sam, tiny_processor):
    found = pixels(choose_frame(tiny_sam, "medsam", tiny_processor))
    assert found.shape == (1, 3, 64, 64)
    assert (found.min(), found.max()) == (0, 1)


def test_a_saved_processor_that_squashes_is_read_back_and_not_padded(bare):
    _, processor = load_sam(bare, frame="medsam")
    processor.save_pretrained(bare)
    again_model, again = load_sam(bare)
    assert isinstance(again, SquareProcessor)
    assert again == processor
    assert chosen_frame(again_model) is None
    assert load_sam(bare, frame="squashed")[1] == processor
    with pytest.raises(ValueError, match=r"squashes images to a square\. Leave it out"):
        load_sam(bare, frame="padded")


@pytest.mark.parametrize(
    ("answer", "asks"), [(EntryNotFoundError, True), (LocalEntryNotFoundError, False), (OSError, False)]
)
def test_a_repository_without_processor_asks_too(monkeypatch, tiny_sam, answer, asks):
    def nothing(*_, **__):
        raise answer.__new__(answer)

    def usual(self, source, model):
        raise OSError("no processor there")

    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: tiny_sam.config)
    monkeypatch.setattr(Sam, "load_model", lambda *_, **__: tiny_sam)
    monkeypatch.setattr(Sam, "processor", usual)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nothing)
    said = r"Say it with --frame" if asks else r"its processor: no processor there"
    with pytest.raises(ValueError if asks else OSError, match=re.compile(said)):
        load_sam("owner/name")
