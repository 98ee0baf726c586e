"""Filling a cache of features, and reading it: how busy the encoder is, and files against shards."""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from samparser.data import read_image
from samparser.features import FeatureCache
from samparser.features.filling import pixels_of
from samparser.features.store import FeatureStore
from samparser.sam import default_processor

from .measure import device, now, table
from .models import Size, make_sam
from .scale import MIB, own_memory
from .steps import coefficients_and_decoder


class Photos(Sequence[Any]):
    """JPEG files of smooth noise, of the size of COCO's images, decoded when they are asked for."""

    def __init__(self, folder: Path, number: int, size: tuple[int, int] = (640, 480)) -> None:
        from PIL import Image

        rng = np.random.default_rng(0)
        self.paths = [folder / f"{index}.jpg" for index in range(number)]
        for path in self.paths:
            coarse = rng.integers(0, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size).save(path, quality=90)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(image=read_image(self.paths[index]))


def measure_filling(size: Size, rounds: int, *, quick: bool) -> str:
    """The part of the time in which the encoder works, and what autocast and batches do to it."""
    number = 4 if quick else 24 if size.layers < 12 else 6
    model: Any = coefficients_and_decoder(make_sam(size)).to(device())
    processor = default_processor(make_sam(size))
    ways: dict[str, dict[str, Any]] = {
        "one process": {},
        "one worker": {"workers": 1},
        "two workers": {"workers": 2},
        "two workers, shards of 8": {"workers": 2, "shards": 8},
        "two workers, batches of 4": {"workers": 2, "batch": 4},
        "two workers, bf16 autocast": {"workers": 2, "autocast": torch.bfloat16},
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Photos(Path(folder), number)
        for name, way in ways.items():
            inside, against = zip(
                *(_fill_once(model, processor, photos, dict(way)) for _ in range(rounds)), strict=True
            )
            rows.append([name, f"{statistics.median(inside):.1%}", f"{statistics.median(against):.1%}"])
    header = ["way", "inside the encoder", "rate of the encoder alone"]
    return (
        f"{size.name}, {number} images of 640 x 480 (JPEG), float16 tokens to files, medians of {rounds} rounds of "
        "wall time from the first image to the last file; workers start within it. The encoder alone takes the same "
        f"images from memory, one after the other, in the same precision and batches:\n\n{table(header, rows)}"
    )


def _fill_once(model: Any, processor: Any, photos: Photos, way: dict[str, Any]) -> tuple[float, float]:
    """Shares of the wall time of one filling: in which the encoder works, and that it would take by itself."""
    workers = way.pop("workers", 0)
    images = getattr(processor, "image_processor", processor)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, model, processor, **way)
        encode, inside = cache.encode_pixels, []

        def timed(pixels: torch.Tensor) -> Any:
            start = time.perf_counter()
            encoded = encode(pixels)
            _wait()
            inside.append(time.perf_counter() - start)
            return encoded

        cache.encode_pixels = timed  # type: ignore[method-assign]
        filled = _seconds(lambda: cache.fill(photos, workers=workers, progress=False))
        working = sum(inside)
    batch = way.get("batch", 1)
    prepared = [pixels_of(photo.image, images) for photo in photos]
    batches = [torch.stack(prepared[start : start + batch]) for start in range(0, len(prepared), batch)]
    alone = _seconds(lambda: [encode(pixels) for pixels in batches])
    return working / filled, alone / filled


def _seconds(work: Any, clock: Any = time.perf_counter) -> float:
    start = clock()
    work()
    _wait()
    return clock() - start


def _wait() -> None:
    if device().type != "cpu":
        torch.accelerator.synchronize(device())


def measure_reading(entries: int, *, quick: bool) -> str:
    """Many small entries, written and then read in random order by a process that has just begun."""
    shape = (4, 4, 8) if quick else (16, 16, 32)
    rows, baseline = [], 0.0
    for name, together in (("a file each", None), ("shards of 64", 64), ("shards of 1000", 1000)):
        with tempfile.TemporaryDirectory() as folder:
            written, first, each, grown, bytes_ = _write_and_read(Path(folder), entries, shape, together)
        baseline = baseline or each
        cells = [f"{written:.1f} s", f"{1e3 * first:.1f} ms", f"{1e3 * each:.3f} ms", f"{baseline / each:.2f}"]
        rows.append([name, *cells, f"{grown / MIB:.0f} MiB", f"{bytes_ / entries / 1e3:.1f} KB"])
    header = ["layout", "written in", "first entry", "each further one", "rate / files", "memory", "on disk, each"]
    return (
        f"{entries:,} entries of {shape} in float16. The first entry is read by a new store, which looks for shards "
        "then; further ones in random order, each compared with its checksum; memory is the growth of the "
        f"process's own:\n\n{table(header, rows)}"
    )


def _write_and_read(
    folder: Path, entries: int, shape: tuple[int, ...], together: int | None
) -> tuple[float, float, float, float, float]:
    """Seconds to write all, to read the first and each further one; bytes of memory and on disk."""
    store = FeatureStore(folder, "synthetic", (shape,), torch.float16)
    features = (torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32)),)
    keys = [f"{number:08x}".rjust(64, "0")[::-1] for number in range(entries)]

    def write() -> None:
        if together is None:
            for key in keys:
                store.write(key, features)
            return
        for start in range(0, entries, together):
            store.shards.write({key: store.stored(features) for key in keys[start : start + together]})

    written = _seconds(write, now)
    bytes_ = sum(path.stat().st_blocks * 512 for path in folder.rglob("*.safetensors"))
    random.Random(0).shuffle(keys)
    before = own_memory()
    fresh = FeatureStore(folder, "synthetic", (shape,), torch.float16)
    first = _seconds(lambda: fresh.read(keys[0]), now)
    rest = _seconds(lambda: [fresh.read(key) and None for key in keys[1:]], now)
    return written, first, rest / (entries - 1), max(0.0, own_memory() - before), bytes_
