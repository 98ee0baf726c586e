"""Masks at original image size for boxes and points given in original pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from samparser.prompts.checks import check_boxes, check_image, check_points
from samparser.sam.changes import is_tuned
from samparser.sam.families import family_of
from samparser.sam.frame import frame_of
from samparser.sam.loading import check_processor
from samparser.sam.modes import evaluating
from samparser.sam.wrapped import image_processor, plain_model

from .cropped_mask import CroppedMask, planes
from .resize import MaskResizer
from .shared_encoder import SharedEncoder, check_adapters, using_adapter

MASKS_AS_RELEASED = (
    "As the model was released: one that is unstable gives way to the best of three other heads' masks "
    "(dynamic_multimask_via_stability)."
)
MASKS_AS_TUNED = (
    "Of the head that tuning trains, also where they are unstable (dynamic_multimask_via_stability is off)."
)


class SamPredictor:
    """A SAM that looks at one image and answers any number of prompts, under any of its adapters.

    The image is encoded when the first prompt comes, and again only where another adapter, or a weight that has
    changed meanwhile, makes that necessary (what is written in place to `weight.data` is not seen: call `set_image`
    again). The model runs in eval mode without gradients and is left as it was.

    Args:
        model: A model of a SAM family, or a PeftModel around one.
        processor: Its processor, or the image processor alone; it decides the input frame.
        tuned: Whether masks come from the head that tuning trains; false takes the released model's way, which in
            SAM 2, SAM 3 and EdgeTAM puts another head's mask in place of an unstable one. None: true where an adapter
            is active or the model itself was trained.

    Raises:
        TypeError: The model is of no SAM family.
        ValueError: The processor is one for another input size.

    Example:
        predictor = SamPredictor(model, processor)
        predictor.set_image(image)
        masks = predictor.predict(boxes=[[10, 20, 110, 220]])
        others = predictor.predict(points=[[60, 80]], adapters=["nuclei", None])
    """

    def __init__(self, model: nn.Module, processor: Any, *, tuned: bool | None = None) -> None:
        self._family = family_of(model, "Prediction")
        check_processor(model, processor)
        self._sam: Any = plain_model(model)
        self._model, self._images, self._tuned = model, image_processor(processor), tuned
        self._frame = frame_of(processor)
        self._encoder: SharedEncoder | None = None
        self._size = (0, 0)

    @property
    def masks(self) -> str | None:
        """Whose masks answer prompts now, as a sentence to stand beside scores.

        None in families that have one way only.
        """
        if not self._family.replaces_unstable_masks:
            return None
        released = not self._as_tuned() and self._family.replaces_unstable(self._sam)
        return MASKS_AS_RELEASED if released else MASKS_AS_TUNED

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, uint8 RGB (H, W, 3), in place of the one before.

        Raises:
            ValueError: The image is not uint8 RGB, or so narrow that nothing is left of its shorter side.
        """
        image = check_image(image)
        height, width = image.shape[:2]
        if min(self._frame.content((height, width))) == 0:
            raise ValueError(narrow(height, width, self._frame.size))
        pixels = self._images(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        self._encoder = SharedEncoder(self._model, pixels)
        self._size = (height, width)

    def predict_logits(self, boxes: Any = None, points: Any = None, labels: Any = None, *, batch: int = 64) -> Tensor:
        """Return mask logits at original image size; above 0 means object.

        Logits go to original size as transformers' `post_process_masks` of the family does it, see `Frame`.

        Args:
            boxes: (N, 4), (x0, y0, x1, y1) in pixels of the original image.
            points: (N, 2), one (x, y) in original pixels per object; or (N, P, 2), or a list of N arrays (P_n, 2).
                With boxes too, each object has both.
            labels: 1 on the object, 0 off it, in the shape of the points without the last axis; None means all 1.
            batch: Prompts decoded at a time: bounds memory, changes nothing else.

        Returns:
            float32 (N, H, W) on the CPU.

        Raises:
            ValueError: Prompts are missing, malformed, outside the image or in another frame; or there is no image.
        """
        prompts, number = self._prompts(boxes, points, labels, batch)
        logits, resizer = torch.empty((number, *self._size)), self.resizer
        for mask, plane in zip(logits, self._decode(prompts, number, batch), strict=True):
            for _, y, piece in resizer.pieces(plane):
                mask[y : y + len(piece)] = piece
        return logits

    def predict_cropped(
        self, boxes: Any = None, points: Any = None, labels: Any = None, *, threshold: float = 0.0, batch: int = 64
    ) -> Iterator[CroppedMask]:
        """Yield one mask per box or point inside its box, so that none takes memory by the size of the image.

        Arguments and errors are those of `predict`; the errors come before the first mask is asked for.
        """
        prompts, number = self._prompts(boxes, points, labels, batch)
        return self._masks(prompts, number, threshold, batch)

    def _masks(self, prompts: dict[str, Tensor], number: int, threshold: float, batch: int) -> Iterator[CroppedMask]:
        resizer = self.resizer
        for plane in self._decode(prompts, number, batch):
            x, y, mask = resizer.mask(plane, threshold)
            yield CroppedMask.of(mask, (x, y), self._size)

    @property
    def resizer(self) -> MaskResizer:
        """The way from the logits of `candidates` to the image's own size."""
        return MaskResizer(self._frame, self._size)

    def candidates(self, points: np.ndarray, *, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield three masks for each single point on an object, as the mask decoder gives them, in batches.

        Args:
            points: (N, 2), (x, y) in pixels of the original image.
            batch: Points decoded at a time.

        Returns:
            For n points logits (3 n, h, w) on the model's device, point by point, and the IoU that the model expects of
            each, float32 (3 n,) on the CPU.
        """
        prompts, number = self._prompts(None, points[:, None], None, batch)
        for logits, expected in self._decoded(prompts, number, batch, multimask=True):
            yield logits.flatten(0, 1), expected.flatten().float().cpu()

    @overload
    def predict(
        self,
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
        self,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        *,
        threshold: float = 0.0,
        batch: int = 64,
        adapters: Sequence[str | None],
    ) -> dict[str | None, np.ndarray]: ...

    def predict(
        self,
        boxes: Any = None,
        points: Any = None,
        labels: Any = None,
        *,
        threshold: float = 0.0,
        batch: int = 64,
        adapters: Sequence[str | None] | None = None,
    ) -> np.ndarray | dict[str | None, np.ndarray]:
        """Return one mask per box or point, at original image size.

        Prompts and errors are those of `predict_logits`, and besides:

        Args:
            boxes: As for `predict_logits`.
            points: As for `predict_logits`.
            labels: As for `predict_logits`.
            threshold: Logits above it belong to the object.
            batch: As for `predict_logits`.
            adapters: Names of adapters of a PeftModel to run one after the other; None among them stands for the base
                model. What no adapter changes runs once: with only the neck and the decoder adapted, that is the whole
                transformer. The active adapter is the same afterwards as before. Several threads may predict with one
                model, but only while none of them names adapters.

        Returns:
            bool (N, H, W); with `adapters` a dict of such arrays by adapter name.

        Raises:
            TypeError: `adapters` is given and the model is no PeftModel.
            ValueError: An adapter is not there or named twice, or as for `predict_logits`.
        """
        prompts, number = self._prompts(boxes, points, labels, batch)
        if adapters is not None:
            check_adapters(self._model, adapters)

        def masks() -> np.ndarray:
            return planes(self._masks(prompts, number, threshold, batch), number, self._size)

        if adapters is None:
            return masks()
        found = {}
        for name in adapters:
            with using_adapter(self._model, name):
                found[name] = masks()
        return found

    def _prompts(self, boxes: Any, points: Any, labels: Any, batch: int) -> tuple[dict[str, Tensor], int]:
        """Return the prompts as the model wants them, each (1, N, ...) in the input frame, and N."""
        if self._encoder is None:
            raise ValueError("There is no image yet: call set_image(image) before predict.")
        if batch < 1:
            raise ValueError(f"batch must be 1 or more prompts at a time; got {batch}.")
        if boxes is None and points is None:
            raise ValueError(
                "Give boxes or points (or both): SAM segments what a prompt asks for. For masks of everything "
                "in the image use generate_masks."
            )
        if labels is not None and points is None:
            raise ValueError("labels say which points are on the object; give points with them.")
        size, frame = self._size, self._frame
        arrays: dict[str, np.ndarray] = {}
        if boxes is not None:
            arrays["input_boxes"] = frame.to_input(check_boxes(boxes, size, frame), size)
        if points is not None:
            array, marks = check_points(points, labels, size)
            arrays |= {"input_points": frame.to_input(array, size), "input_labels": marks}
        if boxes is not None and points is not None and len(arrays["input_boxes"]) != len(arrays["input_points"]):
            raise ValueError(
                f"Boxes and points together describe the same objects; got {len(arrays['input_boxes'])} boxes and "
                f"{len(arrays['input_points'])} objects with points."
            )
        device = next(self._sam.parameters()).device
        prompts = {name: torch.from_numpy(array)[None].to(device) for name, array in arrays.items()}
        return prompts, next(iter(prompts.values())).shape[1]

    def _decode(self, prompts: dict[str, Tensor], number: int, batch: int) -> Iterator[Tensor]:
        """Yield logits (h, w) at the size of the resized image for one prompt after another, decoded in batches."""
        resizer = self.resizer
        for batched, _ in self._decoded(prompts, number, batch, multimask=False):
            for logits in batched:
                yield resizer.to_input(logits)[0]

    def _decoded(
        self, prompts: dict[str, Tensor], number: int, batch: int, *, multimask: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits (n, M, h, w) and expected IoUs (n, M) of n prompts at a time, M = 3 or 1 masks for each."""
        assert self._encoder is not None
        for start in range(0, number, batch):
            chunk = {name: tensor[:, start : start + batch] for name, tensor in prompts.items()}
            # Not around the yield: the caller's own mode and gradients are its own.
            with evaluating(self._model), self._masks_as_tuned():
                masks, expected = self._family.decode(self._sam, self._encoder.embed(), chunk, multimask)
            yield masks[0], expected[0]

    def _as_tuned(self) -> bool:
        return is_tuned(self._model) if self._tuned is None else self._tuned

    def _masks_as_tuned(self) -> AbstractContextManager[None]:
        return self._family.single_mask(self._sam) if self._as_tuned() else nullcontext()


def narrow(height: int, width: int, target: int) -> str:
    """Say why an image is too narrow for a SAM whose input is `target` pixels."""
    return (
        f"The image has {width} x {height} (width x height) pixels; resized to {target}, nothing is left of its "
        "shorter side. Cut it into pieces."
    )


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
    """Return mask logits of one image at original size; see `SamPredictor.predict_logits`."""
    predictor = SamPredictor(model, processor)
    predictor.set_image(image)
    return predictor.predict_logits(boxes, points, labels, batch=batch)


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
    """Return one mask per box or point of one image, at original size.

    For several calls on one image keep a `SamPredictor`, which encodes it once.

    Args:
        model: A model of a SAM family, or a PeftModel around one. Runs in eval mode without gradients and is left as
            it was.
        processor: Its processor, or the image processor alone.
        image: uint8 RGB (H, W, 3).
        boxes: (N, 4), (x0, y0, x1, y1) in pixels of the original image.
        points: (N, 2), one (x, y) in original pixels per object; or (N, P, 2), or a list of N arrays (P_n, 2). With
            boxes too, each object has both.
        labels: 1 on the object, 0 off it, in the shape of the points without the last axis; None means all 1.
        threshold: Logits above it belong to the object.
        batch: Prompts decoded at a time: bounds memory, changes nothing else.
        adapters: Names of adapters of a PeftModel to run one after the other on the same image; None among them
            stands for the base model. What no adapter changes runs once: with only the neck and the decoder adapted,
            that is the whole transformer. The active adapter is the same afterwards as before. Several threads may
            predict with one model, but only while none of them names adapters.

    Returns:
        bool (N, H, W); with `adapters` a dict of such arrays by adapter name.

    Raises:
        ValueError: Prompts are missing, malformed, outside the image or in another frame; the image is not uint8 RGB;
            an adapter is not there or named twice.
        TypeError: The model is of no SAM family, or `adapters` is given and it is no PeftModel.
    """
    predictor = SamPredictor(model, processor)
    predictor.set_image(image)
    return predictor.predict(boxes, points, labels, threshold=threshold, batch=batch, adapters=adapters)
