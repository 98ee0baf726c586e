"""Data sets of images with instance masks, read from the layouts that benchmarks and people use."""

from samparser._extras import require

for _package in ("PIL", "scipy", "pycocotools", "tqdm"):
    require(_package, "Reading data sets")

from .dataset import SegmentationDataset  # noqa: E402
from .flips import Flipped, RandomlyFlipped  # noqa: E402
from .layouts import detect_layout, open_dataset  # noqa: E402
from .readers.images import read_image  # noqa: E402
from .sample import DataError, Instance, Sample, Skipped  # noqa: E402
from .settings import DataSettings  # noqa: E402

__all__ = [
    "DataError",
    "DataSettings",
    "Flipped",
    "Instance",
    "RandomlyFlipped",
    "Sample",
    "SegmentationDataset",
    "Skipped",
    "detect_layout",
    "open_dataset",
    "read_image",
]
