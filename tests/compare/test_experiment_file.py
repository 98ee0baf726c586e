import json
from pathlib import Path

import pytest

from samparser.compare import ExperimentError, load_experiment, parse_experiment

EXPERIMENTS = Path(__file__).parents[2] / "examples" / "compare" / "experiments"


def test_a_valid_experiment_has_names_and_labels_filled_in(experiment):
    assert [(row.name, row.label) for row in experiment.methods] == [
        ("zero-shot", "zero-shot"),
        ("decoder", "decoder only"),
        ("samparser", "ours"),
    ]
    assert experiment.seeds == (0, 1)


def put(place, **values):
    """Changes one object of the content, found by a path such as ("methods", 0)."""

    def function(content):
        for step in place:
            content = content[step]
        content.update(values)

    return function


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put((), sedes=[1]), ["no field 'sedes'", "Did you mean 'seeds'?", "methods"]),
        (put((), seeds=3), ["seeds must be a list", "3"]),
        (put((), seeds=[0, 0]), ["different whole numbers", "(0, 0)"]),
        (put((), seeds=[0.5]), ["seeds must be a list, each item a whole number"]),
        (put((), seeds=[-1]), ["seeds holds -1", "from 0 to 4,294,967,295"]),
        (put((), seeds=[2**32]), ["seeds holds 4294967296"]),
        (put((), seeds=[2**70]), ["seeds must be a list, each item a whole number, got (1180591620717411303424,)"]),
        (put((), seeds=[10**400]), ["seeds must be a list", "000"]),
        (put(("search",), seed=-3), ["search.seed holds -3"]),
        (put(("search",), epochs=0), ["search.epochs is 0; it must be greater than 0"]),
        (put(("search",), epochs=float("inf")), ["search.epochs must be a number or null, got inf"]),
        (put(("search",), held_out=float("nan")), ["search.held_out must be a number, got nan"]),
        (put(("search",), trials=[{"learning_rate": float("inf")}] * 2), ["search.trials must be a list"]),
        (put(("training",), learning_rate=float("nan")), ["training.learning_rate must be", "got nan"]),
        (put(("training",), learning_rate=1e300), ["training.learning_rate must be", "got 1e+300"]),
        (put(("prompts",), jitter_max=2**70), ["prompts.jitter_max must be a"]),
        (put(("methods", 1), train_images=2**70), ["train_images must be a whole number or null"]),
        (put(("methods", 1), paper_gmac=float("inf")), ["paper_gmac must be a number or null, got inf"]),
        (put(("data", 0), options={"min_area": float("inf")}), ["options.min_area must be", "got inf"]),
        (put((), panels={"rows": ["decoder"], "seed": -1}), ["panels.seed holds -1"]),
        (put((), panels={"rows": ["decoder"], "images": 2**80}), ["panels.images must be a whole number"]),
        (put(("paper", "decoder", "toy"), miou=float("nan")), ["must be a percentage, got nan"]),
        (put((), title=7), ["title must be a text, got 7"]),
        (put((), methods=[]), ["methods is empty"]),
        (put((), reference="lora"), ["no row 'lora'", "zero-shot, decoder, samparser"]),
        (put((), name="a/b"), ["'a/b'", "file names"]),
        (put((), model=None), ["model must be a text"]),
        (put(("methods", 1), method="decodre"), ["methods[1]", "no method 'decodre'", "'decoder'", "lora"]),
        (put(("methods", 2), options={"rnak": 3}), ["'samparser'", "'rnak'", "parametrization, rank, save_basis"]),
        (put(("methods", 1), name="samparser"), ["the name 'samparser' occurs twice"]),
        (put(("methods", 1), train_images=0), ["train_images is 0", "at least 1"]),
        (put(("methods", 1), training={"seed": 3}), ["methods[1].training", "no field 'seed'", "num_train_epochs"]),
        (put(("methods", 1), prompts={"jitter": 3}), ["no field 'jitter'", "jitter_max"]),
        (
            put(("methods", 1), training={"num_train_epochs": "two"}),
            ["num_train_epochs must be a number or null, got 'two'"],
        ),
        (put(("methods", 1), training={"num_train_epochs": -2}), ["decoder on toy", "num_train_epochs is -2"]),
        (put(("data", 0), layout="cooc"), ["data[0]", "no layout 'cooc'", "'coco'", "nwpu"]),
        (put(("data", 0), test_split="eval"), ["no split 'eval'", "train, val, test"]),
        (put(("data", 0), test_split="train"), ["trains on 'train' and scores on 'train'"]),
        (put(("data", 0), options={"val_ration": 0.1}), ["'val_ration'", "val_ratio"]),
        (put(("data", 0), options={"val_ratio": 2}), ["val_ratio=2"]),
        (put(("data", 0), metrics=["iou"]), ["no metric 'iou'", "miou, f1, dsc"]),
        (put(("data", 0), files=["/etc/passwd"]), ["inside of the folder"]),
        (put(("data", 0), cache="yes"), ["cache must be true or false, got 'yes'"]),
        (put(("search",), held_out=1.0), ["held_out is 1.0"]),
        (put(("search",), trials=[{"learning_rate": 1e-4}]), ["samparser has 2 trials", "gives every row 1"]),
        (put(("search",), trials=[{"epochs": 1.0}] * 2), ["no learning rate 'epochs'", "coefficient_lr"]),
        (put((), search=None), ["samparser lists trials"]),
        (put(("paper",), lora={}), ["paper", "no row 'lora'"]),
        (put(("paper", "decoder"), coco={}), ["no data set 'coco'", "toy"]),
        (put(("paper", "decoder", "toy"), dsc=1), ["no metric of the set 'dsc'", "miou, f1"]),
        (put(("paper", "decoder", "toy"), miou=829), ["must be a percentage, got 829"]),
        (put((), imports=["nothing.py"]), ["nothing.py", "no Python file"]),
        (lambda content: content["data"][0].pop("source"), ["data[0] lacks source"]),
    ],
)
def test_what_an_experiment_does_not_know_is_named_with_what_is_possible(changed, change, words):
    with pytest.raises(ExperimentError) as error:
        parse_experiment(changed(change))
    assert [word for word in words if word not in str(error.value)] == []


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    with pytest.raises(ExperimentError, match=r"none\.json cannot be read"):
        load_experiment(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("[" * 50_000)
    with pytest.raises(ExperimentError, match=r"bad\.json is not JSON that can be read: it is nested too deeply\.$"):
        load_experiment(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"seeds": [' + "9" * 5000 + "]}")
    with pytest.raises(ExperimentError, match=r"bad\.json is not JSON"):
        load_experiment(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{'name': 1}")
    with pytest.raises(ExperimentError, match=r"bad\.json is not JSON"):
        load_experiment(tmp_path / "bad.json")


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_ready_made_experiments_are_valid_and_carry_their_file_s_name(file):
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    assert json.loads(file.read_text("utf-8"))["title"]
