"""Which data to read, and how: settings for Python and the command line alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class DataSettings:
    """Where a data set lies and what to take from it. Every field but ``data`` has a default that suits most sets."""

    data: str = field(metadata={"help": "Folder of the data set, or a COCO JSON file."})
    layout: str = field(
        default="auto",
        metadata={
            "help": "coco, voc, nwpu, whu, ssdd, nifti or folders; auto finds out from the files and says so when it "
            "cannot tell."
        },
    )
    classes: list[str] | None = field(
        default=None, metadata={"help": "Keep only instances of these classes, by name. Default: all."}
    )
    min_area: int | None = field(
        default=None,
        metadata={"help": "Leave out instances of fewer pixels of the original image. Default: 1; 100 for CT volumes."},
    )
    annotations: str | None = field(
        default=None,
        metadata={
            "help": "COCO JSON file, relative to the data folder, for names that auto does not know; {split} in it "
            "stands for train, val or test. Without {split} the one file is divided by ratio or by split_file."
        },
    )
    images: str | None = field(
        default=None,
        metadata={"help": "Folder of the images, relative to the data folder; may contain {split}."},
    )
    masks: str | None = field(
        default=None,
        metadata={"help": "Folder of the masks (layout folders), relative to the data folder; may contain {split}."},
    )
    instances: Literal["components", "class", "ids"] = field(
        default="components",
        metadata={
            "help": "What an instance is in a mask file: each connected component of a class, a class as a whole, or "
            "each different value (ids)."
        },
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the values or colours of mask files mean, as VALUE=NAME: 1=road 2=car, or '#ff0000=road'. "
            "Not needed for masks of 0 and 1, 255 or 65535, nor for instance ids."
        },
    )
    void_value: int | None = field(
        default=None,
        metadata={"help": "Value in mask files that means unknown: ignored by losses and metrics. 255 in VOC's files."},
    )
    mask_threshold: int | None = field(
        default=None,
        metadata={
            "help": "Mask values from this one upwards are foreground; for masks saved as JPEG or with soft edges."
        },
    )
    split_file: str | None = field(
        default=None,
        metadata={
            "help": "Text file with one image name a line, relative to the data folder, with {split} in its name; or "
            'one JSON file {"train": [names], "val": [names]}. For sets without a split of their own.'
        },
    )
    val_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Part of the images held out as val, drawn with split_seed, where the set has no split of its own. "
            "Default: 0.2; 0.3 for NWPU VHR-10."
        },
    )
    test_ratio: float = field(
        default=0.0,
        metadata={"help": "Part held out as test besides val. With 0, test names the same images as val."},
    )
    split_volumes: bool = field(
        default=False,
        metadata={
            "help": "Divide CT data by volume and not by slice as the paper does, so that no patient is in two parts."
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the division into train, val and test."})
    limit: int | None = field(
        default=None, metadata={"help": "Use only this many images, drawn with split_seed: for trials."}
    )
    scan: bool = field(
        default=False,
        metadata={
            "help": "Read every image and mask once before starting, and leave out (and count) those that do not open "
            "or have no instance. Takes minutes on a large set; otherwise a bad file stops the run when its turn comes."
        },
    )
    window_level: float = field(default=40.0, metadata={"help": "Centre of the CT window in Hounsfield units."})
    window_width: float = field(default=400.0, metadata={"help": "Width of the CT window in Hounsfield units."})

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
        if self.window_width <= 0:
            raise ValueError(f"window_width must be positive, got {self.window_width}.")
