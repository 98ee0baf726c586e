import json
import math
import shutil
from dataclasses import replace
from statistics import fmean

import pytest

from samparser.compare import Column, ExperimentError, Report, compare, markdown, parse_experiment, select, tasks
from samparser.compare.also import refuse_trained_on
from samparser.compare.statistics import paired_difference
from samparser.compare.workspace import Workspace
from samparser.data import DataSettings, open_dataset
from samparser.methods import load_trained
from samparser.training import EvalSettings, evaluate

from ..conftest import make_tiny_sam, write_toy_coco

OTHER = {
    "name": "base",
    "title": "Base set",
    "folder": "base-set",
    "source": "made by the tests",
    "files": ["annotations/*.json"],
}


@pytest.fixture(scope="module")
def root(toy_coco, tmp_path_factory):
    """A data root with the toy and another set, which shares names but no image with it."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(toy_coco, root / "toy-coco")
    write_toy_coco(root / "base-set", images=4, seed=5)
    return root


@pytest.fixture(scope="module")
def with_also(content):
    """Two rows, two seeds, features in float32: cached scores are those without a cache."""
    given = json.loads(json.dumps(content)) | {"also": OTHER, "paper": {}}
    given["methods"] = given["methods"][:2]
    given["training"] |= {"cache_dtype": "fp32", "learning_rate": 1e-2}
    del given["search"]
    return parse_experiment(given)


@pytest.fixture(scope="module")
def finished(with_also, root, tmp_path_factory):
    """A whole comparison; tests look at it and do not change it."""
    output = tmp_path_factory.mktemp("compare") / "small"
    report = compare(with_also, output=output, data_root=root, cost=False, say=lambda line: None)
    return output, report


def result(output, name):
    return json.loads((output / "results" / f"{name}.json").read_text("utf-8"))


def again(experiment, output, root):
    return compare(experiment, output=output, data_root=root, cost=False, say=lambda line: None)


def test_every_final_model_is_scored_on_the_other_set_with_tight_boxes(finished, root, tiny_processor):
    output, report = finished
    dataset = open_dataset(DataSettings(data=str(root / "base-set")), "val")
    models = {"zero-shot--once": make_tiny_sam()}
    for seed in (0, 1):
        adapter = output / "runs" / f"toy--decoder--seed{seed}" / "adapter"
        models[f"decoder--seed{seed}"] = load_trained(make_tiny_sam(), adapter)
    tables = {
        name: evaluate(model, tiny_processor, dataset, EvalSettings(), progress=False) for name, model in models.items()
    }
    for name, table in tables.items():
        cell = result(output, f"toy--{name}")
        assert cell["also"]["scores"]["instance_image_mean"]["miou"] == pytest.approx(table.miou, abs=1e-6), name
        assert cell["also"]["units"]["miou"] == pytest.approx(
            {image: miou for image, (miou, _) in table.image_scores().items()}, abs=1e-6
        )
        assert cell["also"]["definitions"]["prompt"] == "The tight box of each instance."
        assert cell["settings"]["also"]["test_images"].startswith("4 images, names ")
        assert (output / "runs" / f"toy--{name}" / "scores_also.csv").is_file()
    lost = report.columns[0].forgetting("decoder")
    before = tables["zero-shot--once"].miou
    by_hand = fmean(tables[f"decoder--seed{seed}"].miou - before for seed in (0, 1))
    assert lost.mean == pytest.approx(by_hand, abs=1e-6)
    assert abs(lost.mean) > 1e-4
    assert (lost.seeds, lost.units) == (2, 4)
    assert report.columns[0].forgetting("zero-shot") is None


def test_the_page_and_the_numbers_have_a_column_of_it(finished):
    output, report = finished
    lost = report.columns[0].forgetting("decoder")
    page = (output / "small.md").read_text("utf-8")
    head, decoder = (next(line for line in page.splitlines() if line.startswith(start)) for start in ("|  |", "| deco"))
    assert head.endswith("| Base set: mIoU against zero-shot |")
    cell = f"{'' if lost.clear else '≈ '}{100 * lost.mean:+.2f} ± {100 * lost.error:.2f}"
    assert decoder.endswith(f"| {cell} |")
    assert "- Base set: mIoU against zero-shot: what is forgotten. The models of each table on 4 images" in page
    numbers = json.loads((output / "small.json").read_text("utf-8"))["data"]["toy"]
    scores = [result(output, f"toy--decoder--seed{seed}")["also"]["scores"]["instance_image_mean"] for seed in (0, 1)]
    ours = numbers["rows"]["decoder"]["also"]
    assert ours["seeds"] == [score["miou"] for score in scores]
    assert ours["mean"] == pytest.approx(fmean(ours["seeds"]))
    assert ours["difference"]["mean"] == lost.mean
    assert numbers["rows"]["zero-shot"]["also"]["difference"] is None
    assert numbers["also_before"] == {"row": "zero-shot", "miou": numbers["rows"]["zero-shot"]["also"]["mean"]}


def test_without_a_row_that_trains_nothing_the_untuned_model_is_scored_once(
    finished, with_also, root, tmp_path, monkeypatch
):
    shutil.copytree(finished[0], tmp_path / "small")
    monkeypatch.setattr(tasks, "run_cell", None)
    lines = []
    alone = select(with_also, data=None, rows=["decoder"], seeds=None)
    report = compare(alone, output=tmp_path / "small", data_root=root, cost=False, say=lines.append)
    assert lines[0] == "2 of 3 results are there"
    assert lines[1].startswith("[3/3] base before training: mIoU ")
    assert report.columns[0].forgetting("decoder") == finished[1].columns[0].forgetting("decoder")
    assert "| Base set: mIoU against zero-shot |" in markdown(report)
    assert report.to_json()["data"]["toy"]["also_before"]["row"] is None
    monkeypatch.setattr("samparser.compare.run.score_before", None)
    again(alone, tmp_path / "small", root)


def test_results_without_the_other_set_stay_readable_and_are_told_apart(finished, with_also, root, tmp_path):
    plain = select(replace(with_also, also=None), data=None, rows=["decoder"], seeds=1)
    report = again(plain, tmp_path / "small", root)
    assert "also" not in result(tmp_path / "small", "toy--decoder--seed0")
    assert "also" not in result(tmp_path / "small", "toy--decoder--seed0")["settings"]
    assert "Base set" not in markdown(report)
    assert "also" not in report.to_json()["data"]["toy"]["rows"]["decoder"]
    # The training is the same with another set and without.
    scores = [result(output, "toy--decoder--seed0")["scores"] for output in (tmp_path / "small", finished[0])]
    assert scores[0] == scores[1]
    with pytest.raises(ExperimentError, match=r"also\.folder: '\(not set\)' there, 'base-set' now"):
        again(select(with_also, data=None, rows=["decoder"], seeds=1), tmp_path / "small", root)


def test_a_result_that_lost_its_other_scores_is_named(finished, with_also, root, tmp_path):
    shutil.copytree(finished[0], tmp_path / "small")
    path = tmp_path / "small" / "results" / "toy--decoder--seed1.json"
    content = json.loads(path.read_text("utf-8"))
    del content["also"]
    path.write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=r"seed1\.json lacks also, so it is no result"):
        again(with_also, tmp_path / "small", root)


def test_trials_are_not_scored_on_the_other_set(content, root, tmp_path):
    given = json.loads(json.dumps(content)) | {"also": OTHER, "paper": {}, "seeds": [0]}
    given["methods"] = given["methods"][1:2]
    again(parse_experiment(given), tmp_path / "small", root)
    names = {path.stem for path in (tmp_path / "small" / "results").iterdir()}
    assert names == {"toy--decoder--trial0", "toy--decoder--trial1", "toy--decoder--seed0", "also--before"}
    for name in names - {"also--before"}:
        found = result(tmp_path / "small", name)
        assert ("also" in found) == ("also" in found["settings"]) == ("seed" in name)


def test_an_image_that_is_trained_on_is_refused_before_anything_is_trained(with_also, root, tmp_path):
    same = replace(with_also, also=replace(with_also.also, folder="toy-coco", test_split="train"))
    with pytest.raises(ExperimentError, match=r"train/train-000\.png of `also`, base, is an image that toy trains on"):
        again(same, tmp_path / "small", root)
    assert not list(tmp_path.rglob("*.json"))
    allowed = replace(same, training={**same.training, "allow_shared": True})
    refuse_trained_on(Workspace(allowed, root, tmp_path))


def test_a_missing_other_set_is_told_with_where_it_comes_from(with_also, root, tmp_path):
    elsewhere = replace(with_also, also=replace(with_also.also, folder="nowhere"))
    with pytest.raises(ExperimentError, match=r"base: .*nowhere does not exist; it must hold .*\n    from made by the"):
        again(elsewhere, tmp_path / "small", root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_split": "train"}, r"also: there is no field 'train_split'"),
        ({"layout": "cocoo"}, "also: there is no layout 'cocoo'. Did you mean 'coco'"),
        ({"test_split": "dev"}, "also: there is no split 'dev'"),
        ({"files": []}, "also needs at least one entry in files"),
        ({"options": {"val_ratio": 2.0}}, r"also\.options: val_ratio"),
        ({"name": "a/b"}, "also: the name 'a/b' becomes part of file names"),
    ],
)
def test_what_the_other_set_does_not_know_is_named(changed, change, said):
    with pytest.raises(ExperimentError, match=said):
        parse_experiment(changed(lambda content: content.update(also={**OTHER, **change})))


def test_the_other_set_needs_something_that_trains(changed):
    with pytest.raises(ExperimentError, match=r"also is scored with trained models, but .*data is empty"):
        parse_experiment(changed(lambda content: content.update(also=OTHER, data=[], paper={})))
    assert parse_experiment(changed(lambda content: content.update(also=None))).also is None
    full = parse_experiment(changed(lambda content: content.update(also={**OTHER, "test_split": "all"})))
    assert (full.also.title, full.also.test_split) == ("Base set", "all")


def scored(*images):
    means = {"miou": fmean(images), "f1": 0.5}
    return {"scores": {"instance_image_mean": means}, "units": {"miou": dict(zip("xyz", images, strict=True))}}


def test_the_column_equals_a_computation_by_hand(with_also):
    def run(also):
        scores = {"instance_image_mean": {"miou": 0.5, "f1": 0.5}}
        main = {"scores": scores, "units": {"miou": {"a": 0.5}, "f1": {"a": 0.5}}}
        time = {"seconds_per_step": 0.5, "cached": False}
        trained = {"total": 1, "by_part": {}, "bytes": 1}
        about = {"definitions": {"instance_image_mean": "a mean."}, "rates": {}, "versions": {}, "git": None}
        return {**main, **about, "time": time, "trained": trained, "also": also}

    runs = {
        "zero-shot": [run(scored(0.8, 0.7, 0.9))],
        # Minus zero-shot: -0.1, -0.1, -0.1 and -0.2, -0.2, -0.2.
        "decoder": [run(scored(0.7, 0.6, 0.8)), run(scored(0.6, 0.5, 0.7))],
    }
    column = Column(with_also.data[0], runs, {}, 6, 1, runs["zero-shot"][0]["also"], "zero-shot")
    lost = column.forgetting("decoder")
    assert (lost.mean, lost.error) == (pytest.approx(-0.15), pytest.approx(math.sqrt(0.005 / 2)))
    before = {"x": 0.8, "y": 0.7, "z": 0.9}
    assert lost == paired_difference([r["also"]["units"]["miou"] for r in runs["decoder"]], [before, before])
    text = markdown(Report(with_also, [column], {}))
    lines = {line.split(" | ")[0]: line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")}
    # Three standard errors of two seeds: Student's t asks for 12.7.
    assert lines["| decoder only"] == "≈ -15.00 ± 5.00 |"
    assert lines["| zero-shot"] == "– |"
    assert "minus zero-shot there (80.0 %)" in text
