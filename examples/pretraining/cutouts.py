"""Photographed objects on a transparent ground: real outlines and surfaces to place in synthetic scenes."""

from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

LONGEST = 176
"""Longest side in pixels at which a cut-out is kept."""


def load_cutouts(folder: Path) -> list[np.ndarray]:
    """Every PNG below ``folder`` with a transparent ground, as uint8 (height, width, 4), in the order of their paths.

    Pictures that are opaque all over, nearly empty, or of one colour (letters, symbols) are left out.
    """
    cutouts = []
    for path in sorted(folder.rglob("*.png")):
        picture = Image.open(path).convert("RGBA")
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
        pixels = np.asarray(picture)
        solid = pixels[..., 3] > 127
        if min(solid.shape) < 12 or not 0.05 < solid.mean() < 0.99 or pixels[solid][:, :3].std(0).max() < 12:
            continue
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        cutouts.append(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    if not cutouts:
        raise FileNotFoundError(f"{folder} has no PNG of an object on a transparent ground, in any folder below it.")
    return cutouts


def placed(rng: Generator, cutout: np.ndarray, longest: float) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out at ``longest`` pixels, turned, mirrored and in another light.

    Returns:
        Colours, float32 (height, width, 3) in 0..1, and cover, float32 (height, width) in 0..1.
    """
    picture = Image.fromarray(cutout)
    scale = longest / max(picture.size)
    squeeze = np.exp(rng.uniform(-0.2, 0.2))
    size = (max(3, round(picture.width * scale * squeeze)), max(3, round(picture.height * scale / squeeze)))
    resample = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR
    # colours are weighed by their cover, so that the ground's colour does not bleed into the rim
    picture = picture.convert("RGBa").resize(size, resample).convert("RGBA")
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = rng.normal(0, 12) if rng.random() < 0.7 else rng.uniform(0, 360)
    picture = picture.rotate(float(turn), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(picture, np.float32) / 255
    colours = (pixels[..., :3] - 0.5) * np.exp(rng.normal(0, 0.25)) + 0.5 + rng.normal(0, 0.1)
    if rng.random() < 0.3:
        mix = np.eye(3) + rng.normal(0, 0.2, (3, 3))
        colours = colours @ (mix / np.abs(mix).sum(0, keepdims=True))
    return colours.astype(np.float32), pixels[..., 3]
