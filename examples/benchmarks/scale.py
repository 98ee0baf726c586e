"""Cost against image size, instances, batch and number of cached images, in one figure."""

import resource
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samparser.features.store import FeatureStore
from samparser.sam import lean_decoder

from .measure import now, peak_bytes, table
from .models import Size, make_batch, make_sam, make_samples, training_step
from .steps import coefficients_and_decoder

MIB = 2**20


def measure_scale(size: Size, rounds: int, figure: Path | None, *, quick: bool) -> str:
    """Seconds and peak memory of a step from features, and memory while reading many cached images."""
    sizes = [32, 64] if quick else [256, 512, 1024]
    instances = [1, 2] if quick else [1, 10, 100]
    batches = [1, 2] if quick else [1, 2, 4]
    images = 20 if quick else 1000
    small = size if quick else replace(size, layers=1)
    middle = sizes[-1] if quick else 512
    panels = {
        "image size in pixels": [(value, _step(small, value, 1, 1, rounds)) for value in sizes],
        f"instances, {middle} px": [(value, _step(small, middle, value, 1, rounds)) for value in instances],
        f"images in a batch, {middle} px": [(value, _step(small, middle, 1, value, rounds)) for value in batches],
    }
    cached = _read_many(images, (64, 64, 768) if not quick else (8, 8, 24))
    rows = []
    for name, points in panels.items():
        for value, (seconds, bytes_) in points:
            rows.append([f"{name}: {value}", f"{seconds:.3g} s", f"{bytes_ / MIB:.0f} MiB"])
    for number, (seconds, resident) in cached:
        rows.append([f"cached images read: {number}", f"{1e3 * seconds:.2f} ms each", f"{resident / MIB:.0f} MiB"])
    if figure is not None:
        _draw(panels, cached, figure)
    text = (
        "A step from features in memory (ViT-B's neck and decoder), forward to Adam: median time and peak of tensors "
        "above the model. For cached images: time to map, checksum aside, and copy one, and the growth of the "
        "process's own memory since the first."
    )
    return f"{text}\n\n{table(['what', 'time', 'memory'], rows)}"


def _step(size: Size, pixels: int, instances: int, batch: int, rounds: int) -> tuple[float, int]:
    """Median seconds and peak bytes of a step whose features are in memory already."""
    size = replace(size, pixels=pixels)
    model: Any = coefficients_and_decoder(make_sam(size)).train()
    encoder = model.get_base_model().vision_encoder
    side = pixels // encoder.config.patch_size
    encoder.patch_embed, encoder.layers, encoder.pos_embed = torch.nn.Identity(), torch.nn.ModuleList(), None
    features = torch.randn(batch, side, side, size.width)
    (sample,) = make_samples(1, pixels, instances)
    step = training_step(model, features, make_batch(sample, batch))
    seconds = []
    with lean_decoder(model):  # as where a cache feeds the model
        peak = peak_bytes(step)
        for _ in range(rounds):
            start = now()
            step()
            seconds.append(now() - start)
    return statistics.median(seconds), peak


def _read_many(images: int, shape: tuple[int, int, int]) -> list[tuple[int, tuple[float, float]]]:
    """Seconds for each entry and bytes of growth, after a tenth, a third and all of the entries."""
    marks = {images // 10, images // 3, images}
    points = []
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), "synthetic", (shape,), torch.float16)
        features = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        keys = [f"{number:064x}" for number in range(images)]
        for key in keys:
            store.write(key, (features,))
        store.read(keys[0])[0].clone()
        first, seconds = own_memory(), []
        for number, key in enumerate(keys, start=1):
            start = now()
            store.read(key)[0].clone()
            seconds.append(now() - start)
            if number in marks:
                points.append((number, (statistics.median(seconds), max(0.0, own_memory() - first))))
    return points


def own_memory() -> float:
    """Bytes of the process that are in memory now; where that cannot be asked, the most there ever were."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _draw(panels: dict[str, Any], cached: list[tuple[int, tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    time_colour, memory_colour = "#0072B2", "#D55E00"
    everything = {**panels, "cached images read": cached}
    for axis, (name, points) in zip(axes, everything.items(), strict=True):
        values = [value for value, _ in points]
        reading = name.startswith("cached")
        scale = 1e3 if reading else 1
        axis.plot(values, [scale * seconds for _, (seconds, _) in points], "o-", color=time_colour)
        axis.set_xlabel(name)
        axis.set_ylabel("ms for each" if reading else "seconds a step", color=time_colour)
        axis.set_ylim(bottom=0)
        axis.set_xticks(values)
        if max(values) > 20 * min(values) or "size" in name:
            axis.set_xscale("log", base=2 if "size" in name else 10)
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
        other = axis.twinx()
        other.plot(values, [memory / MIB for _, (_, memory) in points], "s--", color=memory_colour)
        other.set_ylabel("MiB, growth" if reading else "MiB, peak", color=memory_colour)
        other.set_ylim(bottom=0, top=max(10.0, 1.15 * max(memory / MIB for _, (_, memory) in points)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
