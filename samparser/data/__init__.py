"""Data sets of images with instance masks, read from the layouts that benchmarks and people use."""

from samparser._extras import require

for _package in ("PIL", "scipy", "pycocotools", "msgspec", "tqdm"):
    require(_package, "Reading data sets")

from .convert import Conversion, convert_dataset  # noqa: E402
from .dataset import SegmentationDataset  # noqa: E402
from .flips import Flipped, RandomlyFlipped  # noqa: E402
from .layouts import LAYOUTS, detect_layout, from_datasets, open_dataset  # noqa: E402
from .readers.images import read_image  # noqa: E402
from .readers.reader import Layout, Reader  # noqa: E402
from .sample import DataError, DataWarning, Instance, Sample, Skipped  # noqa: E402
from .settings import DataSettings  # noqa: E402

__all__ = [
    "LAYOUTS",
    "Conversion",
    "DataError",
    "DataSettings",
    "DataWarning",
    "Flipped",
    "Instance",
    "Layout",
    "RandomlyFlipped",
    "Reader",
    "Sample",
    "SegmentationDataset",
    "Skipped",
    "convert_dataset",
    "detect_layout",
    "from_datasets",
    "open_dataset",
    "read_image",
]
