"""What docs/compare.md promises: a method is one function, a data set is one reader and one JSON file."""

import json

import numpy as np
import pytest
from PIL import Image

from samparser.cli import main
from samparser.compare import ExperimentError, compare, load_experiment
from samparser.data.layouts import LAYOUTS
from samparser.methods import METHODS

ADDITIONS = '''
"""A method and a layout of one's own."""

import numpy as np

from samparser.methods import method
from samparser.data import Instance, Sample
from samparser.data.readers.images import read_image
from samparser.data.layouts import LAYOUTS, Layout


@method("iou-head", summary="the head that predicts IoU, and the mask tokens", trains_upstream=False)
def iou_head(model, tokens=True):
    """Trains the mask tokens where asked."""
    model.mask_decoder.iou_prediction_head.requires_grad_(True)
    model.mask_decoder.mask_tokens.requires_grad_(tokens)
    return model


class Halves:
    """Each image has one object, its left half."""

    classes = {1: "half"}
    skipped = []

    def __init__(self, root, split):
        self.root = root / split
        self.names = sorted(path.name for path in self.root.glob("*.png"))

    def read(self, index):
        image = read_image(self.root / self.names[index])
        height, width = image.shape[:2]
        mask = np.ones((height, width // 2), dtype=bool)
        half = Instance(box=(0, 0, width // 2, height), mask=mask, class_id=1, id="1")
        return Sample(name=self.names[index], image=image, instances=(half,)), []


LAYOUTS["halves"] = Layout(
    "images whose left half is the object",
    lambda path: (path / "halves.txt").is_file(),
    lambda path, settings: ("train", "val"),
    lambda path, settings, split: Halves(path, split),
)
'''


@pytest.fixture
def own_experiment(changed, tmp_path):
    """A folder with additions, images in their layout, and an experiment that uses both."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        for number in range(2):
            image = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "mine" / split / f"{split}{number}.png")
    (tmp_path / "mine" / "halves.txt").touch()
    (tmp_path / "additions.py").write_text(ADDITIONS)

    def change(content):
        content |= {"imports": ["additions.py"], "paper": {}, "seeds": [0], "reference": "zero-shot"}
        del content["search"]
        content["methods"] = [{"method": "zero-shot"}, {"method": "iou-head", "options": {"tokens": True}}]
        content["data"] = [
            {"name": "mine", "folder": "mine", "layout": "halves", "files": ["halves.txt"], "source": "drawn here"}
        ]

    path = tmp_path / "own.json"
    path.write_text(json.dumps(changed(change)))
    yield path
    METHODS.pop("iou-head", None)
    LAYOUTS.pop("halves", None)


def test_a_method_is_one_function_and_a_data_set_one_reader_and_one_json_file(own_experiment, tmp_path):
    report = compare(
        load_experiment(own_experiment), output=tmp_path / "out", data_root=tmp_path, cost=False, say=lambda line: None
    )
    page = (tmp_path / "out" / "small.md").read_text("utf-8")
    assert "| iou-head |" in page
    cell = json.loads((tmp_path / "out" / "results" / "mine--iou-head--seed0.json").read_text("utf-8"))
    assert set(cell["units"]["miou"]) == {"val0.png", "val1.png"}
    assert cell["trained"]["by_part"] == {"mask decoder": cell["trained"]["total"]}
    assert report.columns[0].train_images == 2


@pytest.mark.parametrize("code", ["sys.exit(0)", "sys.exit('no licence')", "raise SystemExit"])
def test_an_import_that_ends_the_program_is_an_error(code, own_experiment, tmp_path, capsys):
    (tmp_path / "ends.py").write_text(f"import sys\n{code}\n")
    content = json.loads(own_experiment.read_text())
    own_experiment.write_text(json.dumps({**content, "imports": ["ends.py"]}))
    for _ in range(2):  # a file that failed has not been imported
        with pytest.raises(ExperimentError, match=r"ends\.py, which the experiment imports, fails: SystemExit"):
            load_experiment(own_experiment)
    assert main(["compare", str(own_experiment), "--output", str(tmp_path / "out")]) == 2
    assert "ends.py, which the experiment imports, fails" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "        image = read_image(self.root / self.names[index])\n",
        "    model.mask_decoder.mask_tokens.requires_grad_(tokens)\n",
    ],
    ids=["reader", "method"],
)
def test_what_was_imported_cannot_end_the_command_as_if_all_had_gone_well(line, own_experiment, tmp_path):
    text = (tmp_path / "additions.py").read_text()
    ends = line[: len(line) - len(line.lstrip())] + "raise SystemExit(0)\n"
    (tmp_path / "ending.py").write_text(text.replace(line, ends))
    content = json.loads(own_experiment.read_text())
    own_experiment.write_text(json.dumps({**content, "imports": ["ending.py"]}))
    with pytest.raises(ExperimentError, match=r"calls sys\.exit\(0\)"):
        compare(
            load_experiment(own_experiment), output=tmp_path / "out", data_root=tmp_path, cost=False, say=lambda _: None
        )


def test_an_import_that_fails_is_named(own_experiment, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    content = json.loads(own_experiment.read_text())
    own_experiment.write_text(json.dumps({**content, "imports": ["broken.py"]}))
    with pytest.raises(ExperimentError, match=r"broken\.py.*fails: ZeroDivisionError"):
        load_experiment(own_experiment)
