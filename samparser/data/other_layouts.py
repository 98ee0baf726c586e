"""Layouts that are not read, told by their files, and what makes one of the layouts of them that are."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

_LOOK_AT = 2000  # files, and bytes of a file
_COCO = "export it as COCO JSON there, or convert it"

# What the name of a file is like, what its first bytes have in them, and what to do.
_KNOWN = (
    (r"sa_\d+\.json", rb"segmentation", "SA-1B: one JSON file per image. Join them into one COCO file with images, "
     "annotations and categories; the annotations are COCO's already."),
    (r".*\.json", rb'"_via_img_metadata"|"regions"', f"VGG Image Annotator's JSON: {_COCO}."),
    (r".*\.json", rb'"(brush|polygon|rectangle|ellipse)labels"', "Label Studio's JSON-MIN: export it as JSON."),
    (r".*\.json", rb'"exterior"', f"Supervisely's JSON: {_COCO}, or export masks."),
    (r".*_classes\.csv", rb"", "Roboflow's masks: put them into images/ and masks/, and give class_names."),
    (r"[^/]+/masks/.*\.png|.*/[0-9a-f]{64}/masks/.*", rb"", "a folder of masks for each image (DSB2018): join each "
     "folder into one mask of ids, in images/ and masks/, and set instances to ids."),
    (r".*\.(mha|mhd|nrrd|dcm)", rb"", "volumes: convert them to NIfTI, images named CASE_0000.nii.gz and "
     "labels CASE.nii.gz."),
    (r".*(mask|label|gt|seg)[^/]*\.npy", rb"", "masks as NumPy files: store them as PNG."),
    (r".*[_-](mask|segmentation|gt)\.(png|jpg|tif)", rb"", "images and masks in one folder: name it with both "
     "settings, images and masks."),
)  # fmt: skip


def hint(root: Path) -> str:
    """Return what the files of a folder look like and how to go on, as a sentence after a space; empty if unknown."""
    if not root.is_dir():
        return ""
    files = list(islice((path for path in root.rglob("*") if path.is_file()), _LOOK_AT))
    for name, content, advice in _KNOWN:
        for path in files:
            if re.fullmatch(name, path.relative_to(root).as_posix(), re.IGNORECASE) and _has(path, content):
                return f" It looks like {advice}"
    return ""


def _has(path: Path, content: bytes) -> bool:
    if not content:
        return True
    with open(path, "rb") as file:
        return re.search(content, file.read(_LOOK_AT), re.MULTILINE) is not None
