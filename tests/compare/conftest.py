import json
from pathlib import Path

import pytest

from samparser.compare import parse_experiment
from samparser.methods import METHODS


@pytest.fixture(autouse=True)
def own_methods():
    """Take back the methods that an experiment's `imports` registered."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="session")
def content(tiny_sam_folder) -> dict:
    """What a valid experiment file holds: two data sets on one folder, three rows, a search with two trials."""
    toy = {
        "name": "toy",
        "title": "Toy",
        "folder": "toy-coco",
        "layout": "coco",
        "source": "made by the tests",
        "files": ["annotations/instances_train.json", "train/*.png"],
    }
    return {
        "name": "small",
        "title": "A small comparison",
        "model": str(tiny_sam_folder),
        "data": [toy],
        "methods": [
            {"method": "zero-shot"},
            {"method": "decoder", "label": "decoder only"},
            {
                "method": "samparser",
                "label": "ours",
                "options": {"parametrization": "relative"},
                "trials": [
                    {"learning_rate": 1e-4, "coefficient_lr": 1e-2},
                    {"learning_rate": 1e-3, "coefficient_lr": 1e-1},
                ],
            },
        ],
        "training": {"num_train_epochs": 1, "logging_steps": 1, "use_cpu": True},
        "prompts": {"jitter_max": 2},
        "seeds": [0, 1],
        "search": {"trials": [{"learning_rate": 1e-4}, {"learning_rate": 1e-3}], "held_out": 0.5},
        "paper": {"decoder": {"toy": {"miou": 82.9}}, "samparser": {"toy": {"miou": 84.2, "f1": 90.9}}},
    }


@pytest.fixture
def changed(content):
    """Gives a deep copy of the valid content after a function has changed it."""

    def change(function) -> dict:
        copy = json.loads(json.dumps(content))
        function(copy)
        return copy

    return change


@pytest.fixture(scope="session")
def experiment(content):
    return parse_experiment(json.loads(json.dumps(content)))


@pytest.fixture(scope="session")
def data_root(toy_coco) -> Path:
    return toy_coco.parent
