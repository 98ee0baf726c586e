"""Writers of tiny data sets in the layouts as distributed."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(array: np.ndarray, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def rectangle(x0: int, y0: int, x1: int, y1: int, height: int = 24, width: int = 32) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def full_mask(instance, height: int, width: int) -> np.ndarray:
    """The mask of an instance on the whole image."""
    full = np.zeros((height, width), dtype=bool)
    x0, y0, x1, y1 = instance.box
    full[y0:y1, x0:x1] = instance.mask
    return full


def polygon(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a mask, counted pixel by pixel down the columns."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


def write_coco(
    path: Path,
    images: list[tuple[int, str]],
    annotations: list[dict],
    categories: dict[int, str] | None = None,
    size: tuple[int, int] = (24, 32),
) -> Path:
    """Writes a COCO file; annotations get ids, and class 1 unless they say otherwise."""
    content = {
        "info": {},
        "images": [{"id": i, "file_name": name, "height": size[0], "width": size[1]} for i, name in images],
        "annotations": [{"id": n, "category_id": 1, "iscrowd": 0} | a for n, a in enumerate(annotations, start=1)],
        "categories": [{"id": i, "name": name} for i, name in (categories or {1: "thing"}).items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
