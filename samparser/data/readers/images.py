"""Image files as uint8 RGB, whatever they are stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..sample import DataError

# EXIF's tag of the orientation, and its values that exchange width and height.
_ORIENTATION, _QUARTER_TURNS = 0x0112, frozenset({5, 6, 7, 8})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


def open_pixels(path: Path) -> Image.Image:
    """Return the decoded picture of a file, turned as its EXIF orientation says.

    Raises:
        DataError: There is no such file, it does not open, it is damaged, or it holds several pages.
    """
    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise DataError(f"{path} holds {pages} pages; give one file per image.")
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path} is not an image that Pillow can open. Multi-band and 16-bit colour TIFFs must be converted to "
            f"8-bit RGB first."
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} does not open: {error}. The file may be damaged or incomplete.") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """Return (height, width) of an image file after its EXIF rotation, from the head of the file alone.

    Raises:
        DataError: The file cannot be recognised as an image; the message names it.
    """
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
            return picture.size if turned else (picture.height, picture.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        open_pixels(Path(path))  # says what is wrong
        raise


def read_image(path: Path | str) -> np.ndarray:
    """Return an image file as uint8 RGB (H, W, 3), turned as its EXIF orientation says.

    Grey and palette images become RGB, alpha is dropped. Images of more than 8 bits have no natural range, so each is
    stretched by itself: its 0.1 and 99.9 percentiles become 0 and 255.

    Raises:
        DataError: The file cannot be read as an image; the message names it.
    """
    picture = open_pixels(Path(path))
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float32)
        if not np.isfinite(values).all():
            raise DataError(f"{path} holds values that are not finite; replace them before training.")
        low, high = np.percentile(values, [0.1, 99.9])
        if high <= low:
            low, high = float(values.min()), float(values.max())
        grey = np.clip((values - low) / max(float(high - low), 1e-12) * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(picture.convert("RGB"))
