"""Models and data for the benchmark: random weights of the published sizes, synthetic images and prompts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel

from samparser.data import Instance, Sample
from samparser.methods import build
from samparser.sam import default_processor
from samparser.scoring import segmentation_loss

from .measure import device


@dataclass(frozen=True)
class Size:
    """How large the models of a run are."""

    name: str
    width: int
    layers: int
    heads: int
    pixels: int


FULL = Size("SAM ViT-B at 1024 px", 768, 12, 12, 1024)
MEDIUM = Size("a quarter of SAM ViT-B at 512 px", 768, 3, 12, 512)
QUICK = Size("a tiny SAM at 64 px", 24, 2, 2, 64)


def make_sam(size: Size) -> SamModel:
    """A SAM with random weights of the size that trained ones have."""
    torch.manual_seed(0)
    narrow = size.width < 64
    output = 32 if narrow else 256
    config = SamConfig(
        vision_config={
            "hidden_size": size.width,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "image_size": size.pixels,
            "output_channels": output,
            "num_pos_feats": output // 2,
            "patch_size": 8 if narrow else 16,
            "window_size": 4 if narrow else 14,
            "mlp_dim": 4 * size.width,
            "global_attn_indexes": [size.layers - 1] if size.layers < 12 else [2, 5, 8, 11],
        },
        prompt_encoder_config={"hidden_size": output, "image_size": size.pixels, "patch_size": 8 if narrow else 16},
        mask_decoder_config={"hidden_size": output, "mlp_dim": 64 if narrow else 2048, "num_attention_heads": 8},
    )
    model = SamModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=max(1, parameter[0].numel()) ** -0.5)
            elif not ("norm" in name and name.endswith("weight")):
                parameter.zero_()
        # SAM's own random frequencies have a standard deviation of 1.
        model.shared_image_embedding.positional_embedding.normal_()
    return model.eval().to(device())


def make_samples(number: int, pixels: int, instances: int = 1) -> list[Sample]:
    """Square images of noise with bright rectangles."""
    rng = np.random.default_rng(0)
    samples = []
    for index in range(number):
        image = rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)
        objects = []
        for position in range(instances):
            mask = np.zeros((pixels, pixels), dtype=bool)
            left = (position * pixels // max(8, instances)) % (pixels - pixels // 4)
            mask[pixels // 4 : pixels // 2, left : left + pixels // 4] = True
            objects.append(Instance.from_mask(mask, 1, str(position)))
        samples.append(Sample(f"{index}.png", image, tuple(objects)))
    return samples


def make_batch(sample: Sample, batch: int = 1) -> dict[str, Tensor]:
    """Boxes and masks of a square sample at input size, for a batch of the same image."""
    boxes, masks = torch.from_numpy(sample.boxes), torch.from_numpy(sample.masks)
    height, width = sample.size
    tensors = {
        "input_boxes": boxes.expand(batch, *boxes.shape),
        "masks": masks.expand(batch, *masks.shape),
        "instance_valid": torch.ones(batch, len(boxes), dtype=torch.bool),
        "pixel_valid": torch.ones(batch, height, width, dtype=torch.bool),
    }
    return {name: tensor.to(device()) for name, tensor in tensors.items()}


def training_step(
    model: nn.Module, pixel_values: Tensor | tuple[Tensor, ...], batch: dict[str, Tensor], *, small_loss: bool = False
) -> Any:
    """A function that takes one whole optimizer step: forward, loss, backward, Adam.

    The loss compares masks at input size, or with ``small_loss`` at the size of the logits, as
    ``--loss_resolution logits`` does.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-5, fused=True)
    # A step of zeros changes nothing but makes the optimizer's state, which is not what a later step takes.
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()

    def run(pixels: Tensor | tuple[Tensor, ...] = pixel_values) -> None:
        there = tuple(part.to(device()) for part in pixels) if isinstance(pixels, tuple) else pixels.to(device())
        output = model(pixel_values=there, input_boxes=batch["input_boxes"], multimask_output=False)
        logits, masks, valid = output.pred_masks[:, :, 0], batch["masks"], batch["pixel_valid"]
        if small_loss:
            masks = F.interpolate(masks.float(), size=logits.shape[-2:], mode="area") >= 0.5
            valid = F.interpolate(valid[None].float(), size=logits.shape[-2:], mode="area")[0] >= 0.5
        loss = segmentation_loss(logits, masks, batch["instance_valid"], valid, lambda_focal=0.5)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()

    return run


__all__ = ["FULL", "MEDIUM", "QUICK", "Size", "build", "default_processor", "make_batch", "make_sam", "make_samples"]
