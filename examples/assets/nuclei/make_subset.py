"""Draws this folder's images from a larger set of the same layout, a few of each kind of microscopy.

    python make_subset.py SOURCE OUT

All 40 test images are taken and half of the 120 training images; rates were chosen on the other half.

SOURCE holds {train,test}/*.png and annotations/instances_{train,test}.json. Pixels and masks are kept as they are; the
files are packed tighter: grey images as one channel, masks as compressed run lengths.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# Images of each kind: stained tissue, dark on light grey, and fluorescence by (width, height).
WANTED = {
    "train": {
        "tissue": 10, "bright": 1, (256, 256): 24, (360, 360): 9, (640, 512): 1, (696, 520): 12, (1272, 603): 2,
        (1388, 1040): 1,
    },
    "test": {
        "tissue": 7, "bright": 1, (256, 256): 17, (320, 256): 1, (360, 360): 5, (640, 512): 2, (696, 520): 7,
    },
}  # fmt: skip
SEED = 0


def kind(pixels: np.ndarray) -> str | tuple[int, int]:
    """Which kind of microscopy an RGB image is."""
    saturation = (pixels.max(axis=2).astype(int) - pixels.min(axis=2)).mean()
    if saturation > 8:
        return "tissue"
    return "bright" if pixels.mean() > 110 else (pixels.shape[1], pixels.shape[0])


def main(source: Path, out: Path) -> None:
    """Writes the images and annotation files of both splits."""
    rng = np.random.default_rng(SEED)
    for split, wanted in WANTED.items():
        everything = json.loads((source / f"annotations/instances_{split}.json").read_text())
        by_kind = defaultdict(list)
        for entry in everything["images"]:
            by_kind[kind(np.array(Image.open(source / split / entry["file_name"]).convert("RGB")))].append(entry)
        images = [e for name, n in wanted.items() for e in rng.choice(by_kind[name], size=n, replace=False)]
        images.sort(key=lambda entry: entry["file_name"])
        (out / split).mkdir(parents=True, exist_ok=True)
        for entry in images:
            picture = Image.open(source / split / entry["file_name"]).convert("RGB")
            grey = picture.getchannel(0)
            same = all(channel.tobytes() == grey.tobytes() for channel in picture.split())
            (grey if same else picture).save(out / split / entry["file_name"], optimize=True)
        chosen = {entry["id"] for entry in images}
        annotations = [a for a in everything["annotations"] if a["image_id"] in chosen]
        for annotation in annotations:
            height, width = annotation["segmentation"]["size"]
            rle = coco_mask.frPyObjects(annotation["segmentation"], height, width)
            annotation["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
        everything |= {"images": images, "annotations": annotations}
        (out / "annotations").mkdir(exist_ok=True)
        (out / f"annotations/instances_{split}.json").write_text(json.dumps(everything, separators=(",", ":")) + "\n")
        print(f"{split}: {len(images)} images, {len(annotations)} nuclei")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    main(arguments.source, arguments.out)
