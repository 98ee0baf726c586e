"""Images squashed to a square, as SAM 2, SAM 3 and EdgeTAM want them: their processors without torchvision."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samparser._files import write_text

from .square_settings import OWN_TYPE, PROCESSOR_CLASSES, RESAMPLE_NAMES, read_settings, understood

if TYPE_CHECKING:
    from transformers import BatchFeature

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of SAM, SAM-HQ, SAM 2 and EdgeTAM, for values from 0 to 1."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of SAM 3."""

_MODES = {2: "bilinear", 3: "bicubic"}
_PREPROCESSOR_FILE, _PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"


class SquareImageProcessor:
    """An image processor that resizes to S x S without regard to the sides' ratio, and normalises.

    Pixels equal those of transformers' `Sam2ImageProcessor` and `Sam3ImageProcessor`, which need torchvision: both take
    torch's resizing of uint8 with antialiasing, and `(x - mean / f) / (std / f)` with the rescale factor f in float32.
    Its files are theirs too, so a folder saved here loads with `AutoProcessor` where torchvision is installed.

    A `SamModel` that was trained on squashed images takes one as well (MedSAM: `do_min_max=True, do_normalize=False`).

    Args:
        size: Side S in pixels, or {"height": S, "width": S}.
        image_mean: Subtracted from each channel after rescaling.
        image_std: Each channel is divided by it after that.
        do_resize: False takes only images that have S x S pixels.
        do_rescale: Multiply the values, 0 to 255, by `rescale_factor`.
        rescale_factor: See `do_rescale`.
        do_normalize: Subtract the mean and divide by the standard deviation.
        do_min_max: Bring the values of each resized image, over all its channels, to 0 .. 1. In place of rescaling and
            normalising, so `do_normalize` has to be False. No processor of transformers does it; settings with it are
            saved under a type of their own, which transformers refuses.
        do_convert_rgb: Repeat the channel of grey images, and convert Pillow images of other modes; False refuses them.
        resample: Pillow's number of the filter: 2 bilinear or 3 bicubic, both with antialiasing.
        mask_size: Side of the masks that transformers makes of `segmentation_maps`; only kept for the file. None: a
            quarter of the size.
        image_processor_type: transformers' class that the settings are saved as.

    Raises:
        ValueError: The size is no square, or a setting is not possible.

    Example:
        >>> import numpy as np
        >>> images = SquareImageProcessor(8)
        >>> encoded = images(np.full((4, 5, 3), 255, dtype=np.uint8))
        >>> tuple(encoded["pixel_values"].shape), encoded["original_sizes"].tolist()
        ((1, 3, 8, 8), [[4, 5]])
    """

    model_input_names = ("pixel_values",)

    def __init__(
        self,
        size: int | Mapping[str, int] = 1024,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        *,
        do_resize: bool = True,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        do_min_max: bool = False,
        do_convert_rgb: bool = True,
        resample: int = 2,
        mask_size: int | Mapping[str, int] | None = None,
        image_processor_type: str = "Sam2ImageProcessor",
    ) -> None:
        self.size = _square("size", size)
        self.mask_size = _square("mask_size", max(1, self.side // 4) if mask_size is None else mask_size)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.do_resize, self.do_rescale, self.rescale_factor = do_resize, do_rescale, rescale_factor
        self.do_normalize, self.do_min_max, self.do_convert_rgb = do_normalize, do_min_max, do_convert_rgb
        self.resample = int(resample)
        self.image_processor_type = OWN_TYPE if do_min_max else image_processor_type
        self._check()

    @property
    def side(self) -> int:
        """S, the side of the square in pixels."""
        return self.size["height"]

    def _check(self) -> None:
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, red, green and blue; got {values}.")
        if min(self.image_std) <= 0 or not (self.rescale_factor > 0 and math.isfinite(self.rescale_factor)):
            raise ValueError(
                f"image_std and rescale_factor must be above 0; got {self.image_std} and {self.rescale_factor}."
            )
        if self.resample not in _MODES:
            name = RESAMPLE_NAMES.get(self.resample, "unknown")
            raise ValueError(
                f"resample {self.resample} ({name}) is not possible here; 2 (bilinear) and 3 (bicubic) are. The "
                "published SAM 2, EdgeTAM and SAM 3 use 2."
            )
        if self.do_min_max and self.do_normalize:
            raise ValueError(
                "do_min_max scales to 0 .. 1 in place of mean and standard deviation: set do_normalize=False."
            )
        if self.image_processor_type == OWN_TYPE and not self.do_min_max:
            self.image_processor_type = "Sam2ImageProcessor"
        if self.image_processor_type not in (*PROCESSOR_CLASSES, OWN_TYPE):
            raise ValueError(
                f"image_processor_type must be {' or '.join(PROCESSOR_CLASSES)}; got {self.image_processor_type!r}."
            )

    def __call__(
        self,
        images: Any,
        return_tensors: str = "pt",
        input_data_format: Literal["channels_first", "channels_last"] | None = None,
    ) -> BatchFeature:
        """Return what the model takes, and the sizes that masks are brought back to.

        Args:
            images: A Pillow image, or an array or tensor, uint8 RGB (H, W, 3) or (3, H, W); or a list of them, or a
                batch of four axes. Grey images may lack the channels.
            return_tensors: "pt"; there are only tensors.
            input_data_format: Where the channels are. None: where there are three.

        Returns:
            `pixel_values`, float32 (B, 3, S, S), and `original_sizes`, int64 (B, 2), each (H, W).

        Raises:
            ValueError: An image is not uint8 RGB or grey, or has another size and is not to be resized.
        """
        from transformers import BatchFeature

        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt' (torch tensors); got {return_tensors!r}.")
        many = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        planes = [self._planes(image, input_data_format) for image in (images if many else [images])]
        if not planes:
            raise ValueError("There are no images: the list is empty.")
        sizes = torch.tensor([tuple(image.shape[1:]) for image in planes])
        pixels = torch.cat([self._scaled(self._resized(image[None])) for image in planes])
        return BatchFeature({"pixel_values": pixels, "original_sizes": sizes})

    def _planes(self, image: Any, layout: str | None) -> Tensor:
        """Return an image as uint8 (3, H, W)."""
        if hasattr(image, "convert"):  # Pillow's
            if image.mode != "RGB" and not self.do_convert_rgb:
                raise ValueError(f"The image has Pillow's mode {image.mode}, and do_convert_rgb is False; convert it.")
            image, layout = np.array(image.convert("RGB")), "channels_last"
        tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        if tensor.ndim == 2:
            tensor, layout = tensor[None], "channels_first"
        if tensor.dtype != torch.uint8 or tensor.ndim != 3 or not tensor.numel():
            raise ValueError(
                f"Images must be uint8, RGB (H, W, 3) or (3, H, W), or grey (H, W); got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}. Scale other values to 0 .. 255 first."
            )
        if layout is None:
            layout = _layout(tensor)
        if layout not in ("channels_first", "channels_last"):
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last'; got {layout!r}.")
        planes = tensor.permute(2, 0, 1) if layout == "channels_last" else tensor
        if planes.shape[0] == 1 and self.do_convert_rgb:
            planes = planes.expand(3, -1, -1)
        if planes.shape[0] != 3:
            raise ValueError(
                f"Images must have three channels; got {planes.shape[0]} in shape {tuple(tensor.shape)}, {layout}. "
                "Drop the fourth of RGBA, and repeat the one of grey images."
            )
        return planes

    def _resized(self, batch: Tensor) -> Tensor:
        if not self.do_resize:
            if tuple(batch.shape[-2:]) != (self.side, self.side):
                raise ValueError(
                    f"do_resize is False and the image has {batch.shape[-1]} x {batch.shape[-2]} (width x height) "
                    f"pixels; the model takes {self.side} x {self.side}."
                )
            return batch
        return F.interpolate(batch, (self.side, self.side), mode=_MODES[self.resample], antialias=True)

    def _scaled(self, batch: Tensor) -> Tensor:
        values = batch.to(torch.float32)
        if self.do_min_max:
            low, high = values.min(), values.max()
            return (values - low) / (high - low).clamp(min=1e-8)
        if not self.do_normalize:
            return values * self.rescale_factor if self.do_rescale else values
        factor = 1.0 / self.rescale_factor if self.do_rescale else 1.0
        mean, std = (
            (torch.tensor(numbers, device=values.device) * factor)[:, None, None]
            for numbers in (self.image_mean, self.image_std)
        )
        return (values - mean) / std

    def post_process_masks(
        self,
        masks: Sequence[Tensor | np.ndarray] | Tensor | np.ndarray,
        original_sizes: Sequence[tuple[int, int]] | Tensor | np.ndarray,
        mask_threshold: float = 0.0,
        binarize: bool = True,
    ) -> list[Tensor]:
        """Bring mask logits to original image size in one bilinear step.

        Args:
            masks: Logits (N, M, h, w) of each image, as `pred_masks` has them.
            original_sizes: (H, W) of each image.
            mask_threshold: Logits above it belong to the object.
            binarize: False gives logits.

        Returns:
            For each image bool, or else float32, (N, M, H, W).

        Raises:
            ValueError: There are not as many sizes as images.
        """
        sizes = [(int(height), int(width)) for height, width in original_sizes]
        if len(sizes) != len(masks):
            raise ValueError(f"Give one original size (H, W) per image; got {len(sizes)} for {len(masks)} images.")
        logits = [
            F.interpolate(torch.as_tensor(mask).float(), size, mode="bilinear", align_corners=False)
            for mask, size in zip(masks, sizes, strict=True)
        ]
        return [mask > mask_threshold for mask in logits] if binarize else logits

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as transformers writes them."""
        settings = {name: value for name, value in vars(self).items() if name != "do_min_max"}
        return settings | ({"do_min_max": True} if self.do_min_max else {})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> SquareImageProcessor:
        """Make an image processor of settings, as `to_dict` gives them or transformers' files have them.

        Raises:
            ValueError: A setting is of the wrong type, or asks for what is not possible here.
        """
        return cls(**understood(settings))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SquareImageProcessor:
        """Read an image processor from a folder or from the hub, in any layout in which transformers writes it.

        Raises:
            OSError: There is none, or the hub cannot be reached.
            ValueError: It is another kind of image processor, or asks for what is not possible here.
        """
        return cls.from_dict(read_settings(source))

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write preprocessor_config.json, and return its path."""
        return [_write(Path(folder) / _PREPROCESSOR_FILE, self.to_dict())]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SquareImageProcessor) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # settings may be changed

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), sort_keys=True)}"


class SquareProcessor:
    """What holds a `SquareImageProcessor`, as SamProcessor holds SAM's; saved as transformers saves its own.

    Args:
        image_processor: The image processor.
    """

    def __init__(self, image_processor: SquareImageProcessor) -> None:
        self.image_processor = image_processor

    def __call__(
        self,
        images: Any,
        return_tensors: str = "pt",
        input_data_format: Literal["channels_first", "channels_last"] | None = None,
    ) -> BatchFeature:
        """Return `pixel_values` and `original_sizes` of images; see `SquareImageProcessor`."""
        return self.image_processor(images, return_tensors, input_data_format)

    def post_process_masks(self, masks: Any, original_sizes: Any, **options: Any) -> list[Tensor]:
        """Bring mask logits to original image size; see `SquareImageProcessor.post_process_masks`."""
        return self.image_processor.post_process_masks(masks, original_sizes, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return what processor_config.json holds, that of Sam2Processor or Sam3TrackerProcessor.

        The former also serves a SamModel on squashed images: it brings boxes and points to the square.
        """
        settings = self.image_processor.to_dict()
        return {
            "image_processor": settings,
            "point_pad_value": -10,
            "processor_class": PROCESSOR_CLASSES.get(settings["image_processor_type"], type(self).__name__),
            "target_size": self.image_processor.side,
        }

    @classmethod
    def from_pretrained(cls, source: str | Path) -> SquareProcessor:
        """Read a processor from a folder or the hub; errors are those of `SquareImageProcessor.from_pretrained`."""
        return cls(SquareImageProcessor.from_pretrained(source))

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write processor_config.json, and return its path."""
        return [_write(Path(folder) / _PROCESSOR_FILE, self.to_dict())]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SquareProcessor) and self.image_processor == other.image_processor

    __hash__ = None  # type: ignore[assignment]


def _square(name: str, size: int | Mapping[str, int]) -> dict[str, int]:
    """Return a size as {"height": S, "width": S}."""
    sides = dict(size) if isinstance(size, Mapping) else {"height": size, "width": size}
    # Unused keys are null in files of older releases.
    sides = {key: value for key, value in sides.items() if value is not None}
    if set(sides) != {"height", "width"} or sides["height"] != sides["width"] or not sides["height"] >= 1:
        raise ValueError(
            f"{name} must be a square, a number of pixels or {{'height': S, 'width': S}}; got {sides}. A longest or "
            "shortest edge belongs to processors that keep the sides' ratio."
        )
    return {key: int(value) for key, value in sides.items()}


def _layout(image: Tensor) -> str:
    """Return where the channels of an image (3 axes) are."""
    first, last = image.shape[0] in (1, 3), image.shape[2] in (1, 3)
    if first and last:
        raise ValueError(
            f"An image of shape {tuple(image.shape)} may have its channels first or last; say which by "
            "input_data_format='channels_last' or 'channels_first'."
        )
    return "channels_first" if first else "channels_last"


def _write(path: Path, settings: dict[str, Any]) -> str:
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return str(path)
