"""Image files as uint8 RGB, whatever they are stored as."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..intensity import EACH_BY_ITSELF, Intensity
from ..sample import DataError
from .paths import check_regular

_STRIP = 1 << 20  # pixels that are converted at a time
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
# EXIF's tag of the orientation, and its values that exchange width and height.
_ORIENTATION, _QUARTER_TURNS = 0x0112, frozenset({5, 6, 7, 8})
# TIFF's tags, and the bits of the subfile type that mark a smaller copy of the picture and its mask.
_WIDTH, _HEIGHT, _BITS, _PLANES, _SUBFILE = 256, 257, 258, 284, 254
_COPY_OR_MASK = 1 | 4
# Pillow's modes with several channels of 8 bits, and its letters for the order of bytes: big, little, this machine's.
_COLOURS = ("RGB", "RGBA", "LA", "CMYK")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


class Embedded(NamedTuple):
    """A picture that another file holds.

    Attributes:
        data: What a file of its own would hold.
        name: What it is called in messages.
    """

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name


def open_pixels(path: Path | Embedded) -> Image.Image | np.ndarray:
    """Return the decoded picture of a file, turned as its EXIF orientation says.

    Returns:
        Pillow's picture; or, for 16 bits in each of several channels, of which Pillow keeps the upper eight only,
        uint16 (H, W, C) with grey (C = 1) or RGB and perhaps alpha.

    Raises:
        DataError: There is no such file, it does not open, it is damaged, or it holds several pages.
    """
    with _opened(path) as picture:
        pages = _pages(picture)
        if pages > 1:
            raise DataError(f"{path} holds {pages} pages; give one file per image.")
        mode = _raw_mode(picture.tile[0][3]) if picture.tile else ""
        deep = picture.mode in _COLOURS and (";16" in mode or max(_tiff_tag(picture, _BITS, (8,))) > 8)
        if deep and (picture.mode == "CMYK" or _tiff_tag(picture, _PLANES, 1) != 1):
            raise DataError(
                f"{path} holds 16 bits a channel as CMYK or in a plane for each channel, of which only the upper 8 "
                f"could be read. Store it as RGB with the channels of a pixel together."
            )
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # otherwise a copy, of four bytes a pixel
        high = picture
        if not deep:
            return high
    with _opened(path) as picture:
        picture.tile = [_by_lower_byte(tile) for tile in picture.tile]
        low = ImageOps.exif_transpose(picture)
        if mode == "LA;16B":
            four = np.asarray(low, dtype=np.uint16)
            return four[:, :, :1] * 256 + four[:, :, 1:2]
        return np.asarray(high, dtype=np.uint16) * 256 + np.asarray(low)


def image_size(path: Path | str) -> tuple[int, int]:
    """Return (height, width) of an image file after its EXIF rotation, from the head of the file alone.

    Raises:
        DataError: The file cannot be recognised as an image; the message names it.
    """
    with _opened(Path(path)) as picture:
        width, height = picture.size
        if picture.format == "TIFF":  # Pillow's size may be turned already
            width, height = picture.tag_v2[_WIDTH], picture.tag_v2[_HEIGHT]
        turned = picture.getexif().get(_ORIENTATION, 1) in _QUARTER_TURNS
        return (width, height) if turned else (height, width)


def read_image(path: Path | str, intensity: Intensity = EACH_BY_ITSELF) -> np.ndarray:
    """Return an image file as uint8 RGB (H, W, 3), turned as its EXIF orientation says.

    Grey and palette images become RGB, alpha is dropped. Images of more than 8 bits, and of floating point numbers,
    have no natural range: `intensity` says what becomes 0 and 255, by default the 0.1 and 99.9 percentiles of all
    channels of the image itself. Images of 8 bits are left as they are.

    Raises:
        DataError: The file cannot be read as an image; the message names it.
    """
    return as_rgb(open_pixels(Path(path)), str(path), intensity)


def as_rgb(pixels: Image.Image | np.ndarray, source: str, intensity: Intensity = EACH_BY_ITSELF) -> np.ndarray:
    """Return a picture that `open_pixels` has decoded, as `read_image` does; `source` is its name in messages."""
    if isinstance(pixels, np.ndarray):
        values = pixels[:, :, :3].astype(np.float32)
    elif pixels.mode.startswith("I") or pixels.mode == "F":
        values = np.asarray(pixels, dtype=np.float32)[:, :, None]
        if not np.isfinite(values).all():
            raise DataError(f"{source} holds values that are not finite; replace them before training.")
    else:
        return _rgb(pixels)
    return between(values, *intensity.limits(values))


def _rgb(picture: Any) -> np.ndarray:
    """Return an 8-bit picture as uint8 RGB (H, W, 3), a strip at a time: Pillow's copies have four bytes a pixel."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        stop = min(top + step, height)
        pixels[top:stop] = np.asarray(picture.crop((0, top, width, stop)).convert("RGB"))
    return pixels


def between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values (H, W, 1 or 3) as uint8 RGB: 0 at `low` and below, 255 at `high` and above."""
    grey = np.clip((values - low) / max(high - low, 1e-12) * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey


@contextmanager
def _opened(path: Path | Embedded) -> Iterator[Any]:
    """Open a picture, and turn whatever goes wrong with it into DataError."""
    source = io.BytesIO(path.data) if isinstance(path, Embedded) else check_regular(path)
    try:
        with Image.open(source) as picture:
            yield picture
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path} is not an image that Pillow can open. TIFFs of more than four channels, and of colours with more "
            f"than 16 bits, must be converted to 8-bit RGB first."
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large: {str(error).partition(',')[0]}, Pillow's guard against files that unpack to more "
            f"than memory holds. Cut it into tiles (1024 px suit SAM)."
        ) from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} does not open: {error}. The file may be damaged or incomplete.") from error


def _pages(picture: Any) -> int:
    """Count the pages of a file that are pictures of their own.

    Cameras append previews and depth to a JPEG (MPO), map makers smaller copies to a TIFF: these do not count.
    """
    pages = int(getattr(picture, "n_frames", 1))
    if picture.format == "MPO":
        return 1
    if picture.format != "TIFF" or pages == 1:
        return pages
    own = 1
    for number in range(1, pages):
        picture.seek(number)
        own += not _tiff_tag(picture, _SUBFILE, 0) & _COPY_OR_MASK
    picture.seek(0)
    return own


def _tiff_tag(picture: Any, tag: int, default: Any) -> Any:
    return picture.tag_v2.get(tag, default) if picture.format == "TIFF" else default


def _raw_mode(args: Any) -> str:
    return str(args if isinstance(args, str) else args[0])


def _by_lower_byte(tile: Any) -> Any:
    """Return what Pillow shall decode with the other byte order, so that it takes the lower byte for the upper one."""
    args = tile[3]
    mode = _raw_mode(args)
    # Grey and alpha have no such mode: their four bytes are read as four channels.
    other = "RGBA" if mode == "LA;16B" else mode[:-1] + _OTHER_ORDER[mode[-1]]
    args = other if isinstance(args, str) else (other, *args[1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)  # a plain tuple in Pillow 10
