"""The scene: a small model, data, adapter, prompts and experiment in one folder, and the verbs that use them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import make_tiny_sam, write_toy_coco
from tests.robustness.lab import Lab, digests

_TRAINED = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "scores.csv", "scores_before.csv")


@dataclass(frozen=True)
class Scene:
    """Where everything is; what verbs read is never written to by them."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def adapter(self) -> Path:
        return self.root / "run" / "adapter"

    def train(self, output: Path, *more: object, data: Path | None = None, model: Path | None = None) -> list[object]:
        """Four steps in two epochs, a checkpoint and scores after each."""
        words: list[object] = ["train", "--model", model or self.model, "--data", data or self.data]
        words += ["--output_dir", output]
        words += [
            "--num_train_epochs",
            2,
            "--report_to",
            "none",
            "--jitter_max",
            2,
            "--logging_steps",
            1,
            "--learning_rate",
            0.01,
        ]
        return [*words, *more]

    def predict(self, output: Path, model: Path | None = None, boxes: Path | None = None) -> list[object]:
        """Masks for the boxes of two images."""
        words: list[object] = ["predict", model or self.adapter, self.root / "images", "--output", output]
        return [*words, "--boxes", boxes or self.root / "boxes.json"]

    def merge(self, output: Path, adapter: Path | None = None) -> list[object]:
        return ["merge", adapter or self.adapter, output]

    def evaluate(self, output: Path, model: Path | None = None, data: Path | None = None) -> list[object]:
        return ["evaluate", model or self.adapter, "--data", data or self.data, "--output", output]

    def compare(self, output: Path, experiment: Path | None = None) -> list[object]:
        """Two rows, one of them trained, on one data set and one seed."""
        words: list[object] = ["compare", experiment or self.root / "experiment.json", "--output", output]
        return [*words, "--data_root", self.root, "--cost", "False"]


def build_scene(root: Path, processor: Any, lab: Lab) -> Scene:
    """Fill a folder with everything that the verbs read."""
    from PIL import Image

    scene = Scene(root)
    make_tiny_sam().save_pretrained(scene.model)
    processor.save_pretrained(scene.model)
    write_toy_coco(scene.data, images=2, instances=2)
    (root / "images").mkdir()
    boxes = {}
    for number in range(2):
        name = f"train-{number:03d}.png"
        Image.open(scene.data / "train" / name).save(root / "images" / name)
        boxes[name] = [[4, 5, 30, 40], [20, 10, 60, 44]]
    (root / "boxes.json").write_text(json.dumps(boxes))
    experiment = {
        "name": "small",
        "title": "A small comparison",
        "model": str(scene.model),
        "data": [
            {
                "name": "toy",
                "title": "Toy",
                "folder": "data",
                "layout": "coco",
                "source": "made by the tests",
                "files": ["annotations/instances_train.json", "train/*.png"],
            }
        ],
        "reference": "zero-shot",
        "methods": [{"method": "zero-shot"}, {"method": "samparser", "label": "ours"}],
        "training": {"num_train_epochs": 1, "use_cpu": True, "learning_rate": 0.01},
        "prompts": {"jitter_max": 2},
        "seeds": [0],
    }
    (root / "experiment.json").write_text(json.dumps(experiment))
    ran = lab.run(*scene.train(root / "run"))
    assert ran.status == 0, ran.output
    return scene


def write_volumes(root: Path) -> Path:
    """Two small CT volumes with labels, in nnU-Net's names."""
    import nibabel

    for case in ("0001", "0002"):
        image = np.full((20, 16, 4), -1000, dtype=np.int16)
        labels = np.zeros((20, 16, 4), dtype=np.uint8)
        image[2:14, 1:13, 1:3], labels[2:14, 1:13, 1:3] = 40, 1
        for folder, array, ending in (("images", image, "_0000"), ("labels", labels, "")):
            path = root / folder / f"FLARE22_Tr_{case}{ending}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.5, -1.5, 5, 1])), path)
    return root


def trained(run: Path) -> dict[str, Any]:
    """What a training run comes to: its adapter, its scores and its log, without times."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    hashes = digests(run)
    return {**{name: hashes.get(name) for name in _TRAINED}, "log": log}


def scored(output: Path) -> dict[str, Any]:
    """What an evaluation comes to: its two files of scores, None for one that is not there."""
    hashes = digests(output)
    return {name: hashes.get(name) for name in ("scores.csv", "scores.json")}


def compared(output: Path) -> dict[str, Any]:
    """What a comparison comes to: scores and units of each cell, without times.

    A killed writer may leave a hidden temporary file behind, which is no result.
    """
    paths = (path for path in (output / "results").glob("*.json") if not path.name.startswith("."))
    results = {path.stem: json.loads(path.read_text("utf-8")) for path in paths}
    return {name: {key: result[key] for key in ("scores", "units", "rates")} for name, result in results.items()}
