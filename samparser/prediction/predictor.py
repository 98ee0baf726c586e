"""Masks at original image size for boxes and points given in original pixels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from samparser.prompts.checks import check_boxes, check_image, check_points
from samparser.prompts.coordinates import to_input_frame
from samparser.sam.modes import evaluating
from samparser.sam.presets import check_processor, plain_model

from .shared_encoder import SharedEncoder, check_adapters, using_adapter


class _Request(NamedTuple):
    """An image and its prompts, as SamModel wants them."""

    pixel_values: Tensor
    original_size: tuple[int, int]
    prompts: dict[str, Tensor]  # each (1, N, ...), in the input frame
    number: int


def predict_logits(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    boxes: Any = None,
    points: Any = None,
    labels: Any = None,
    *,
    batch: int = 64,
) -> Tensor:
    """Mask logits at original image size; above 0 means object.

    The image is encoded once and the prompts are decoded ``batch`` at a time. Logits go to original size as
    transformers' ``post_process_masks`` does it: up to the padded input, padding cut off, then to original size,
    bilinear both times.

    Args:
        model: SamModel, or a PeftModel around one. Runs in eval mode without gradients and is left as it was.
        processor: Its SamProcessor (or the image processor alone).
        image: uint8 RGB (H, W, 3).
        boxes: (N, 4), (x0, y0, x1, y1) in pixels of the original image.
        points: (N, 2), one (x, y) in original pixels per object; or (N, P, 2), or a list of N arrays (P_n, 2). With
            boxes too, each object has both.
        labels: 1 on the object, 0 off it, in the shape of the points without the last axis; None means all 1.
        batch: Prompts decoded at a time: bounds memory, changes nothing else.

    Returns:
        float32 (N, H, W) on the CPU.

    Raises:
        ValueError: Prompts are missing, malformed, outside the image or in another frame; the image is not uint8 RGB.
        TypeError: The model is not a SamModel.
    """
    request = _prepare(model, processor, image, boxes, points, labels, batch)
    logits = torch.empty((request.number, *request.original_size))
    with evaluating(model):
        embeddings = SharedEncoder(model, request.pixel_values).embed()
        for rows, chunk in _decode(model, processor, request, embeddings, batch):
            logits[rows] = chunk.cpu()
    return logits


@overload
def predict(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    boxes: Any = None,
    points: Any = None,
    labels: Any = None,
    *,
    threshold: float = 0.0,
    batch: int = 64,
    adapters: None = None,
) -> np.ndarray: ...


@overload
def predict(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    boxes: Any = None,
    points: Any = None,
    labels: Any = None,
    *,
    threshold: float = 0.0,
    batch: int = 64,
    adapters: Sequence[str | None],
) -> dict[str | None, np.ndarray]: ...


def predict(
    model: nn.Module,
    processor: Any,
    image: np.ndarray,
    boxes: Any = None,
    points: Any = None,
    labels: Any = None,
    *,
    threshold: float = 0.0,
    batch: int = 64,
    adapters: Sequence[str | None] | None = None,
) -> np.ndarray | dict[str | None, np.ndarray]:
    """One mask per box or point, at original image size.

    Arguments and errors are those of :func:`predict_logits`, and besides:

    Args:
        threshold: Logits above it belong to the object.
        adapters: Names of adapters of a PeftModel to run one after the other on the same image; None among them
            stands for the base model. What no adapter changes runs once: with only the neck and the decoder adapted,
            that is the whole transformer. The active adapter is the same afterwards as before.

    Returns:
        bool (N, H, W); with ``adapters`` a dict of such arrays by adapter name.
    """
    request = _prepare(model, processor, image, boxes, points, labels, batch)
    if adapters is not None:
        check_adapters(model, adapters)

    def masks(encoder: SharedEncoder, context: AbstractContextManager[None]) -> np.ndarray:
        result = np.zeros((request.number, *request.original_size), dtype=bool)
        with context:
            for rows, chunk in _decode(model, processor, request, encoder.embed(), batch):
                result[rows] = (chunk > threshold).cpu().numpy()
        return result

    with evaluating(model):
        encoder = SharedEncoder(model, request.pixel_values)
        if adapters is None:
            return masks(encoder, nullcontext())
        return {name: masks(encoder, using_adapter(model, name)) for name in adapters}


def to_original_size(logits: Tensor, processor: Any, original_size: tuple[int, int]) -> Tensor:
    """Brings mask logits of one image from the decoder's size to original size, as transformers does.

    Args:
        logits: (N, h, w) of the padded input frame, as ``SamModel(...).pred_masks[i, :, 0]`` gives them.
        processor: SamProcessor or its image processor.
        original_size: (H, W) of the image.

    Returns:
        float32 (N, H, W) on the same device.
    """
    images = getattr(processor, "image_processor", processor)
    resized = images._get_preprocess_shape(original_size, images.size["longest_edge"])
    if not len(logits):
        return logits.new_zeros((0, *original_size), dtype=torch.float32)
    return _post_process(processor)([logits.float()[:, None]], [original_size], [resized], binarize=False)[0][:, 0]


def _post_process(processor: Any) -> Callable[..., list[Tensor]]:
    return getattr(processor, "image_processor", processor).post_process_masks


def _prepare(
    model: nn.Module, processor: Any, image: np.ndarray, boxes: Any, points: Any, labels: Any, batch: int
) -> _Request:
    sam: Any = plain_model(model)
    if getattr(getattr(sam, "config", None), "model_type", None) != "sam":
        raise TypeError(f"Prediction needs a SamModel, or a PeftModel around one; got a {type(sam).__name__}.")
    check_processor(model, processor)
    if batch < 1:
        raise ValueError(f"batch must be 1 or more prompts at a time; got {batch}.")
    if boxes is None and points is None:
        raise ValueError(
            "Give boxes or points (or both): SAM segments what a prompt asks for. For masks of everything "
            "in the image use generate_masks."
        )
    if labels is not None and points is None:
        raise ValueError("labels say which points are on the object; give points with them.")
    image = check_image(image)
    size = (image.shape[0], image.shape[1])
    images = getattr(processor, "image_processor", processor)
    target = images.size["longest_edge"]
    parameter = next(sam.parameters())
    prompts: dict[str, Tensor] = {}
    counts = []
    if boxes is not None:
        array = check_boxes(boxes, size, target)
        counts.append(len(array))
        prompts["input_boxes"] = torch.from_numpy(to_input_frame(array, size, target))[None]
    if points is not None:
        array, marks = check_points(points, labels, size)
        counts.append(len(array))
        prompts["input_points"] = torch.from_numpy(to_input_frame(array, size, target))[None]
        prompts["input_labels"] = torch.from_numpy(marks)[None]
    if len(set(counts)) > 1:
        raise ValueError(
            f"Boxes and points together describe the same objects; got {counts[0]} boxes and {counts[1]} "
            "objects with points."
        )
    pixel_values = images(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return _Request(
        pixel_values=pixel_values.to(parameter.device, parameter.dtype),
        original_size=size,
        prompts={name: tensor.to(parameter.device) for name, tensor in prompts.items()},
        number=counts[0],
    )


def _decode(
    model: nn.Module, processor: Any, request: _Request, embeddings: Tensor, batch: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yields logits (n, H, W) at original size for the prompts, ``batch`` at a time."""
    sam: Any = plain_model(model)
    for start in range(0, request.number, batch):
        rows = slice(start, min(start + batch, request.number))
        prompts = {name: tensor[:, rows] for name, tensor in request.prompts.items()}
        output = sam(image_embeddings=embeddings, multimask_output=False, **prompts)
        yield rows, to_original_size(output.pred_masks[0, :, 0], processor, request.original_size)
