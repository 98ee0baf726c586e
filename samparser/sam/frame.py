"""The frame of a model's input: where the pixels of an image lie in the square that the model takes.

Coordinates are (x, y), x to the right and y down, in pixels. The "original frame" is the image; the "input frame" is
the square of `size` x `size` pixels that the image processor makes of it. There are two ways to get there: `Padded`
keeps the sides' ratio and fills up with zeros to the right and below, `Squashed` stretches the image to the square.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .wrapped import image_processor


@dataclass(frozen=True)
class Frame(ABC):
    """A square input, as a value: frames are equal when they place every image alike.

    Attributes:
        size: Side S of the square in pixels.
    """

    size: int

    @abstractmethod
    def content(self, original: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w), the part of the square from its upper left corner that an image of (H, W) pixels fills."""

    @abstractmethod
    def unpadded(self, logits: Tensor, original: tuple[int, int]) -> Tensor:
        """Return mask logits (..., h, w) before the last step of `to_original`, without padding: float32 (..., h', w').

        Args:
            logits: On any device, of any floating-point type, at the size that the mask decoder gives.
            original: (H, W) of the image.
        """

    def to_input(self, xy: np.ndarray, original: tuple[int, int]) -> np.ndarray:
        """Bring points (..., 2) or boxes (..., 4) from the original frame to the input frame.

        x and y are scaled by their own ratio, as the sides of `content` are rounded.

        Args:
            xy: (x, y), or (x0, y0, x1, y1), in the last axis.
            original: (H, W) of the image.

        Returns:
            float32, of the same shape.

        Example:
            >>> Padded(1024).to_input(np.array([0, 0, 640, 480]), (480, 640))
            array([   0.,    0., 1024.,  768.], dtype=float32)
            >>> Squashed(1024).to_input(np.array([320, 120]), (480, 640))
            array([512., 256.], dtype=float32)
        """
        return rescaled(xy, original, self.content(original))

    def to_original(self, logits: Tensor, original: tuple[int, int]) -> Tensor:
        """Return mask logits (..., h, w) at the size of the image, as transformers' `post_process_masks` does it.

        Args:
            logits: On any device, of any floating-point type, at the size that the mask decoder gives.
            original: (H, W) of the image.

        Returns:
            float32 (..., H, W).
        """
        return _resized(self.unpadded(logits, original), original)


class Padded(Frame):
    """The longer side gets S pixels, the rest is zeros to the right and below: SAM and SAM-HQ.

    >>> Padded(1024).content((480, 640))
    (768, 1024)
    """

    def content(self, original: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w) by the rule of transformers' processors: scale by S / longer side, round half up."""
        height, width = original
        scale = self.size / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def unpadded(self, logits: Tensor, original: tuple[int, int]) -> Tensor:
        """Return logits at the size of the resized image: bilinear to the square, padding cut off."""
        height, width = self.content(original)
        return _resized(logits, (self.size, self.size))[..., :height, :width]


class Squashed(Frame):
    """The image fills the square, each side scaled by its own ratio: SAM 2, EdgeTAM, SAM 3, MedSAM.

    >>> Squashed(1024).content((480, 640))
    (1024, 1024)
    """

    def content(self, original: tuple[int, int]) -> tuple[int, int]:
        """Return (S, S)."""
        return self.size, self.size

    def unpadded(self, logits: Tensor, original: tuple[int, int]) -> Tensor:
        """Return the logits as they are, in float32: there is no padding, and one step to the image's size."""
        return logits.float()


def frame_of(processor: Any) -> Frame:
    """Return the frame into which a processor puts images; a frame as it is.

    Args:
        processor: A processor of transformers' SAM families or its image processor.

    Raises:
        TypeError: Its `size` is neither {"longest_edge"} nor {"height", "width"} of one square.
    """
    if isinstance(processor, Frame):
        return processor
    size = getattr(image_processor(processor), "size", None)
    sides = {side: size[side] for side in ("longest_edge", "height", "width") if size and _has(size, side)}
    if "longest_edge" in sides:
        return Padded(int(sides["longest_edge"]))
    if len(sides) == 2 and sides["height"] == sides["width"]:
        return Squashed(int(sides["height"]))
    raise TypeError(
        f"{type(processor).__name__} resizes to {size}; a SAM takes images whose longest edge is resized and then "
        "padded, or that are resized to a square."
    )


def rescaled(xy: np.ndarray, original: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
    """Bring points (..., 2) or boxes (..., 4) of an image (H, W) to the same image at `resized` = (h, w): float32."""
    xy = np.asarray(xy, dtype=np.float64)
    if xy.shape[-1] not in (2, 4):
        raise ValueError(f"Expected points (..., 2) or boxes (..., 4), got an array of shape {xy.shape}.")
    ratio = [resized[1] / original[1], resized[0] / original[0]]
    return (xy * np.array(ratio * (xy.shape[-1] // 2))).astype(np.float32)


def _has(size: Any, side: str) -> bool:
    """Return whether a dict or SizeDict sets a side."""
    return (size.get(side) if isinstance(size, dict) else getattr(size, side, None)) is not None


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize the last two axes bilinearly, in float32."""
    if not logits.numel():
        return torch.zeros((*logits.shape[:-2], *size), device=logits.device)
    # Masks in the axis of the batch, as `pred_masks` has them: rounding depends on it.
    flat = logits.float()
    flat = flat if flat.ndim == 4 else flat.reshape(-1, 1, *logits.shape[-2:])
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(*logits.shape[:-2], *size)
