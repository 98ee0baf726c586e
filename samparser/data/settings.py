"""Which data to read, and how: settings for Python and the command line alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samparser._options import option

from .intensity import Intensity, chosen

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class DataSettings:
    """Where a data set lies and what to take from it. Every field but `data` has a default that suits most sets."""

    data: str = option("Folder of the data set, or a COCO JSON file.")
    layout: str = option(
        "coco, yolo, labelme, cvat, labelstudio, voc, nwpu, whu, ssdd, nifti, datasets or folders; auto finds out from "
        "the files and says so when it cannot tell.",
        "auto",
    )
    classes: list[str] | None = option("Keep only instances of these classes, by name. Default: all.", None)
    min_area: int | None = option(
        "Leave out instances of fewer pixels of the original image. Default: 1; 100 for CT volumes.", None
    )
    annotations: str | None = option(
        "COCO JSON file, relative to the data folder, for names that auto does not know; {split} in it stands for "
        "train, val or test. Without {split} the one file is divided by ratio or by split_file.",
        None,
    )
    crowds: bool | None = option(
        "Keep COCO annotations with iscrowd set as objects. Default: only where it marks brush masks, as CVAT does and "
        "files in which every mask is a run-length encoding with it; elsewhere it marks regions of many objects, which "
        "are left out.",
        None,
    )
    images: str | None = option(
        "Folder of the images, relative to the data folder; may contain {split}. Layout datasets: their column.", None
    )
    masks: str | None = option(
        "Folder of the masks (layout folders), relative to the data folder; may contain {split}. Layout datasets: "
        "their column.",
        None,
    )
    instances: Literal["components", "class", "ids"] = option(
        "What an instance is in a mask file: each connected component of a class, a class as a whole, or each "
        "different value (ids).",
        "components",
    )
    class_names: list[str] | None = option(
        "What the values or colours of mask files mean, as VALUE=NAME: 1=road 2=car, or '#ff0000=road'. Not needed for "
        "masks of 0 and 1, 255 or 65535, nor for instance ids.",
        None,
    )
    void_value: int | None = option(
        "Value in mask files that means unknown: ignored by losses and metrics. 255 in VOC's files.", None
    )
    mask_threshold: int | None = option(
        "Mask values from this one upwards are foreground; for masks saved as JPEG or with soft edges.", None
    )
    split_file: str | None = option(
        "Text file with one image name a line, relative to the data folder, with {split} in its name; or one JSON file "
        '{"train": [names], "val": [names]}. For sets without a split of their own.',
        None,
    )
    val_ratio: float | None = option(
        "Part of the images held out as val, drawn with split_seed, where the set has no split of its own. Default: "
        "0.2; 0.3 for NWPU VHR-10.",
        None,
    )
    test_ratio: float = option("Part held out as test besides val. With 0, test names the same images as val.", 0.0)
    split_volumes: bool = option(
        "Divide CT data by volume, so that no patient is in two parts. false divides by slice, as the paper does: "
        "slices of one patient are then in both, which flatters the scores.",
        True,
    )
    split_seed: int = option("Seed of the division into train, val and test.", 0)
    limit: int | None = option("Use only this many images, drawn with split_seed: for trials.", None)
    scan: bool = option(
        "Read every image and mask once before starting, and leave out (and count) those that do not open or have no "
        "instance. Takes minutes on a large set; otherwise a bad file stops the run when its turn comes.",
        False,
    )
    window_level: float | None = option(
        "Centre of the window of volumes, in Hounsfield units for CT. Default: 40 for CT; volumes of other values are "
        "shown between percentiles of their own.",
        None,
    )
    window_width: float | None = option("Width of that window. Default: 400 for CT.", None)
    intensity_range: str | None = option(
        "What becomes black and white of images with more than 8 bits: two values, as 0,4095, which hold for all "
        "images and keep them comparable; or two percentiles of each image, as 1%,99%. Images of 8 bits are left as "
        "they are. Default: 0.1%,99.9%.",
        None,
    )

    def __post_init__(self) -> None:
        if self.min_area is not None and self.min_area < 1:
            raise ValueError(f"min_area is a number of pixels of at least 1, got {self.min_area}.")
        if self.instances not in ("components", "class", "ids"):
            raise ValueError(f"instances must be components, class or ids, got {self.instances!r}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is a number of images of at least 1, got {self.limit}.")
        val = 0.0 if self.val_ratio is None else self.val_ratio
        if not (0 <= val < 1 and 0 <= self.test_ratio < 1 and val + self.test_ratio < 1):
            raise ValueError(
                f"val_ratio and test_ratio are parts of the images and must leave some to train on, got "
                f"val_ratio={self.val_ratio} and test_ratio={self.test_ratio}."
            )
        if self.window_width is not None and self.window_width <= 0:
            raise ValueError(f"window_width must be positive, got {self.window_width}.")
        chosen(self.intensity_range)

    @property
    def intensity(self) -> Intensity:
        """How images of more than 8 bits are shown."""
        return chosen(self.intensity_range)
