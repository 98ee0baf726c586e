"""A COCO file: opened by samparser, by pycocotools and by json; and how reading all images divides among processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samparser.data import DataSettings
from samparser.data_check import check_dataset

from .measure import quartiles, table

WAYS = ("pycocotools", "samparser", "samparser, train and val", "json")
# images, annotations, images that are real ones and read
QUICK, TENTH, COCO = (60, 400, 40), (11_829, 85_500, 400), (118_287, 855_000, 1000)
MIB = 2**20
_OPEN = """
import contextlib, json, resource, sys, time
from pathlib import Path
from samparser.data import DataSettings, open_dataset  # everything is imported before the clock starts
from pycocotools.coco import COCO
root, way = sys.argv[1:]
path = Path(root, "annotations/instances_train.json")
def opened():
    if way == "samparser":
        return open_dataset(DataSettings(data=root), "train")
    if way == "samparser, train and val":
        return [open_dataset(DataSettings(data=root, val_ratio=0.1), split) for split in ("train", "val")]
    if way == "pycocotools":
        with contextlib.redirect_stdout(None):
            return COCO(path)
    return json.loads(path.read_bytes())
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before, start = most(), time.process_time()
kept = opened()
print(json.dumps([time.process_time() - start, most() - before, most()]))
"""


def measure_data(rounds: int, size: tuple[int, int, int]) -> str:
    """Time and memory of opening a file of so many images and annotations, and the work of a check by processes."""
    images, annotations, read = size
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder, "large"), images, annotations)
        bytes_ = path.stat().st_size
        # A test does without the others, as each is a process of its own.
        ways = WAYS[:2] if size == QUICK else WAYS
        opening = _measure_opening(path.parents[1], ways, rounds)
        checking = _measure_check(Path(folder, "small"), read, rounds)
    return (
        f"A COCO file of {images:,} images with {annotations:,} polygons ({bytes_ / MIB:.0f} MiB), each way in a "
        f"process of its own, in turn. Processor time over that of pycocotools in the same round; memory is the peak "
        f"above what imports take, and that of the process with them:\n\n"
        f"{opening}\n\n`samparser data check` on {read} images of 640 x 480 pixels with 7 polygons each:\n\n{checking}"
    )


def _measure_opening(root: Path, ways: Sequence[str], rounds: int) -> str:
    goals = {"samparser": ("0.25", "0.20")}
    runs: dict[str, list[list[float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            words = [sys.executable, "-c", _OPEN, str(root), way]
            runs[way].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    rows = []
    seconds, above, whole = ({way: np.array(runs[way])[:, column] for way in ways} for column in range(3))
    for way in ways:
        low, middle, high = quartiles((seconds[way] / seconds["pycocotools"]).tolist())
        memory = float(np.median(above[way]) / max(1.0, np.median(above["pycocotools"])))
        goal_time, goal_memory = goals.get(way, ("", ""))
        time_cells = [f"{middle:.2f} ({low:.2f}-{high:.2f})", goal_time, f"{np.median(seconds[way]):.2f} s"]
        sizes = [f"{np.median(peak[way]) / MIB:.0f} MiB" for peak in (above, whole)]
        rows.append([way, *time_cells, f"{memory:.2f}", goal_memory, *sizes])
    header = ["way", "time / pycocotools", "goal", "time", "memory / pycocotools", "goal", "memory", "process"]
    return table(header, rows)


def _measure_check(root: Path, images: int, rounds: int) -> str:
    path = write_file(root, images, 7 * images, name="{:06d}.png")
    ramp = np.add.outer(np.arange(480), np.arange(640))
    for entry in json.loads(path.read_bytes())["images"]:
        pixels = np.stack([ramp, ramp.T.reshape(480, 640), ramp + entry["id"]], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train" / entry["file_name"])
    settings = DataSettings(data=str(root))
    numbers = (1, 2, 4)
    runs: dict[int, list[tuple[float, float]]] = {number: [] for number in numbers}
    for _ in range(rounds):
        for number in numbers:
            first, others = time.process_time(), _of_ended_processes()
            check_dataset(settings, "train", progress=False, processes=number)
            first = time.process_time() - first
            runs[number].append((first, first + _of_ended_processes() - others))
    rows = []
    for number in numbers:
        over = [whole / alone for (_, whole), (_, alone) in zip(runs[number], runs[1], strict=True)]
        low, middle, high = quartiles(over)
        first, whole = np.median(np.array(runs[number]), axis=0).tolist()
        share = "" if number == 1 else f"{first / images * 1e3:.2f} ms"
        goal = "" if number == 1 else "1.10"
        rows.append(
            [str(number), f"{middle:.2f} ({low:.2f}-{high:.2f})", goal, f"{whole / images * 1e3:.2f} ms", share]
        )
    header = ["processes", "processor time of all / of one alone", "goal", "for an image", "of that the first process"]
    return table(header, rows)


def _of_ended_processes() -> float:
    times = os.times()
    return times.children_user + times.children_system


def write_file(root: Path, images: int, annotations: int, name: str = "{:012d}.jpg") -> Path:
    """Write a COCO file with outlines of 10 to 40 points, as COCO's own has them, and empty files for its images."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(5 * images)[:images].tolist()
    path = root / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True)
    (root / "train").mkdir()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": ')
        file.write(json.dumps([_image(id, name.format(id)) for id in ids]))
        file.write(', "annotations": [')
        for number, annotation in enumerate(_annotations(ids, annotations, rng)):
            file.write((", " if number else "") + json.dumps(annotation))
        categories = [{"supercategory": "thing", "id": id, "name": f"thing {id}"} for id in range(1, 91)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    for id in ids:
        (root / "train" / name.format(id)).touch()
    return path


def _image(id: int, name: str) -> dict[str, Any]:
    addresses = {"coco_url": f"http://images.example.org/train/{name}", "flickr_url": f"http://farm.example.org/{name}"}
    return {
        "license": 1,
        "file_name": name,
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14",
        "id": id,
        **addresses,
    }


def _annotations(ids: list[int], number: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for id in range(1, number + 1):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(10, 41))))
        radius = rng.uniform(5, 80)
        x, y = rng.uniform([80, 80], [560, 400])
        outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2)
        yield {
            "segmentation": [outline.ravel().tolist()],
            "area": round(3 * radius**2, 4),
            "iscrowd": 0,
            "image_id": ids[int(rng.integers(len(ids)))],
            "bbox": [round(value, 2) for value in (x - radius, y - radius, 2 * radius, 2 * radius)],
            "category_id": int(rng.integers(1, 91)),
            "id": id,
        }
