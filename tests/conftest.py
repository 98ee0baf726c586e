"""Fixtures that several rooms share: small SAMs with weights of a trained model's size, their processor, generators.

The shapes in the signatures of the tuner's mathematics are checked in every test, by jaxtyping and beartype.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

# Two test processes share two cores: more threads only make them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import builtins

from jaxtyping import Float, Int, install_import_hook

# The library imports these names for type checkers only; beartype evaluates the annotations that hold them.
builtins.Float, builtins.Int = Float, Int
install_import_hook("samparser.tuner.factors", "beartype.beartype")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from pycocotools import mask as mask_codec
from transformers import SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from tests.data.files import picture, polygon, rectangle, runs, save, write_coco
from tests.second_device import second_device

settings.register_profile("samparser", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("samparser")

TINY_SIZE = 64


def tiny_sam_config(**vision) -> SamConfig:
    """A SAM of about 60 thousand parameters on 64 x 64 pixels, with every part of the large one."""
    width = 32
    return SamConfig(
        vision_config={
            "hidden_size": 24,
            "output_channels": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TINY_SIZE,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": width // 2,
            "mlp_dim": 48,
            **vision,
        },
        prompt_encoder_config={
            "hidden_size": width,
            "image_size": TINY_SIZE,
            "patch_size": 8,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 48,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    )


def reinitialise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Gives every parameter the size that a trained model's has; transformers' own start is close to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.1 * noise)
    return model


def make_tiny_sam(seed: int = 0, **vision) -> SamModel:
    """A new tiny SAM in eval mode; the same seed gives the same weights."""
    return reinitialise(SamModel(tiny_sam_config(**vision)), seed).eval()


@pytest.fixture
def tiny_sam() -> SamModel:
    return make_tiny_sam()


@pytest.fixture
def other_tiny_sam() -> SamModel:
    """The same architecture with other weights."""
    return make_tiny_sam(seed=1)


@pytest.fixture(scope="session")
def tiny_processor() -> SamProcessor:
    return SamProcessor(
        SamImageProcessorPil(
            size={"longest_edge": TINY_SIZE},
            pad_size={"height": TINY_SIZE, "width": TINY_SIZE},
            mask_size={"longest_edge": TINY_SIZE // 4},
            mask_pad_size={"height": TINY_SIZE // 4, "width": TINY_SIZE // 4},
        )
    )


@pytest.fixture(scope="session")
def tiny_sam_folder(tmp_path_factory, tiny_processor) -> Path:
    """A checkpoint folder as `from_pretrained` reads it: the weights of `make_tiny_sam()` and the processor."""
    folder = tmp_path_factory.mktemp("tiny-sam")
    make_tiny_sam().save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def gpu(monkeypatch) -> Iterator[torch.device]:
    """A device that is not the CPU: a stand-in that needs no hardware, or the GPU that SAMPARSER_TEST_DEVICE names."""
    wanted = os.environ.get("SAMPARSER_TEST_DEVICE")
    if not wanted:
        with second_device(monkeypatch) as device:
            yield device
        return
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield torch.device(wanted)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not set."""
    root = os.environ.get("SAMPARSER_DATA")
    if not root:
        pytest.skip("SAMPARSER_DATA is not set: it names the folder with real data sets in their benchmarks' layouts")
    return Path(root)


def write_toy_coco(root: Path, *, images: int = 6, instances: int = 3, seed: int = 0) -> Path:
    """A data set in the COCO layout of one's own data: bright ellipses on a dark noisy ground, train and val."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        records, annotations = [], []
        for index in range(images):
            height, width = 48, 64
            ys, xs = np.mgrid[:height, :width]
            image = rng.normal(60, 10, (height, width, 3))
            for number in range(instances):
                cx, cy, rx, ry = 12 + 20 * number, rng.uniform(15, 33), rng.uniform(4, 8), rng.uniform(5, 12)
                mask = ((xs - cx) / rx) ** 2 + ((ys - cy) / ry) ** 2 <= 1
                image[mask] += rng.uniform(60, 120, 3)
                rle = mask_codec.encode(np.asfortranarray(mask.astype(np.uint8)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": 1 + number % 2,
                        "iscrowd": 0,
                        "area": int(mask.sum()),
                        "bbox": [float(v) for v in mask_codec.toBbox(rle)],
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
            name = f"{split}-{index:03d}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / name)
            records.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "blob"}]
        (root / "annotations").mkdir(exist_ok=True)
        text = json.dumps({"images": records, "annotations": annotations, "categories": categories})
        (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


@pytest.fixture(scope="session")
def toy_coco(tmp_path_factory) -> Path:
    """The folder of a small generated data set in COCO's layout: 6 images with 3 instances in each of two splits."""
    return write_toy_coco(tmp_path_factory.mktemp("data") / "toy-coco")


@pytest.fixture
def coco_root(tmp_path) -> Path:
    """Three images of two classes to train on and one to validate with, as COCO2017 names things."""
    for number in range(4):
        folder = "train2017" if number < 3 else "val2017"
        save(picture(seed=number), tmp_path / folder / f"{number:012d}.png")
    categories = {1: "cat", 18: "dog"}
    write_coco(
        tmp_path / "annotations/instances_train2017.json",
        [(0, "000000000000.png"), (1, "000000000001.png"), (7, "000000000002.png")],
        [
            {"image_id": 7, "category_id": 18, "segmentation": polygon(2, 3, 10, 9)},
            {"image_id": 0, "segmentation": polygon(0, 0, 6, 6)},
            {"image_id": 7, "segmentation": {"size": [24, 32], "counts": runs(rectangle(20, 4, 31, 24))}},
            {"image_id": 1, "category_id": 18, "segmentation": polygon(5, 5, 9, 20)},
        ],
        categories,
    )
    write_coco(
        tmp_path / "annotations/instances_val2017.json",
        [(3, "000000000003.png")],
        [{"image_id": 3, "segmentation": polygon(1, 1, 8, 8)}],
        categories,
    )
    return tmp_path
