"""One cell: trains one row on one data set with one seed, scores it, and gives what goes into its result file."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from samparser._untrusted import read_json
from samparser.methods import describe, save_trained
from samparser.scoring.table import ScoreTable
from samparser.training import EvalSettings, TrainSettings, evaluate, train
from samparser.training.caching import open_cache
from samparser.training.environment import git_state, versions

from .plan import Cell
from .workspace import Workspace, train_settings_of

# What a result file holds.
CELL_FIELDS = ("cell", "settings", "rates", "scores", "definitions", "units", "trained", "time", "versions", "git")
_DELETED = ("checkpoints", "figures", "tensorboard")
_GOING = ".deleted"


def run_cell(workspace: Workspace, cell: Cell, rates: Mapping[str, float]) -> dict[str, Any]:
    """Run a cell, or go on with it where an earlier command was killed.

    The run folder `runs/NAME` keeps the adapter, the log and one row per instance in `scores.csv`; `tidy` deletes the
    rest.

    Args:
        workspace: Model and data.
        cell: What to run.
        rates: The learning rates that a trial tries, or that were chosen.

    Returns:
        The content of the cell's result file.
    """
    experiment = workspace.experiment
    source, row = experiment.source(cell.data), experiment.row(cell.row)
    folder = workspace.output / "runs" / cell.name
    features = str(workspace.output / "features") if workspace.cached(cell) else None
    settings = train_settings_of(experiment, source, row, cell, rates, output_dir=str(folder), cache=features)
    train_set, test_set = workspace.sets_of(cell)
    # Trials choose the rates; what is forgotten takes no part in that.
    also_set: Any = None if cell.kind == "trial" else workspace.also_set
    start = time.perf_counter()
    # A method that starts at random starts from the cell's seed.
    set_seed(settings.seed)
    model = workspace.tuned(row)
    timing: dict[str, Any] = {"steps": 0, "seconds_per_step": None}
    if cell.kind == "once":
        sets = [(test_set, experiment.eval_settings(source, row))]
        sets += [] if also_set is None else [(also_set, experiment.also_eval_settings())]
        scores, *rest = scores_of(workspace, model, sets, settings)
        scores.to_csv(folder / "scores.csv")
        also = rest[0] if rest else None
        if also is not None:
            also.to_csv(folder / "scores_also.csv")
    else:
        resume = _prepare(folder)
        result = train(
            model,
            workspace.processor,
            train_set,
            test_set,
            settings,
            prompts=experiment.prompt_settings(source, row),
            eval_settings=experiment.eval_settings(source, row),
            also=also_set,
            resume=resume,
            context={"cell": workspace.settings_of(cell, rates)},
            save=save_trained,
            figures=False,
        )
        assert result.scores is not None
        scores, also = result.scores, result.also
        runtime = read_json(folder / "finished.json").get("train_runtime")
        # Of a run that was stopped in between, only the last part was timed.
        whole = runtime is not None and not resume and result.steps > 0
        timing = {"steps": result.steps, "seconds_per_step": runtime / result.steps if whole else None}
    trained = describe(model)
    return {
        "cell": {"data": cell.data, "row": cell.row, "kind": cell.kind, "number": cell.number},
        "settings": workspace.settings_of(cell, rates),
        "rates": dict(rates),
        "scores": _plain(scores.summary()),
        "definitions": scores.definitions(),
        "units": units_of(scores),
        **({} if also is None else {"also": also_entry(also)}),
        "trained": {"total": trained.total, "by_part": trained.trained, "bytes": trained.bytes_on_disk},
        "time": {
            **timing,
            "cached": features is not None,
            "threads": torch.get_num_threads(),
            "device": str(settings.device),
            "total_seconds": time.perf_counter() - start,
        },
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }


def also_entry(scores: ScoreTable) -> dict[str, Any]:
    """Return what a result file holds of the scores on the other set."""
    return {"scores": _plain(scores.summary()), "definitions": scores.definitions(), "units": units_of(scores)}


def tidy(output: Path, cell: Cell) -> None:
    """Delete what a cell no longer needs once its result is written, also what a killed command left of that.

    Beside adapter, log and scores, a run folder holds checkpoints and figures of up to gigabytes; of a trial nothing is
    kept.
    """
    folder = output / "runs" / cell.name
    for left_over in (*folder.parent.glob(f".{cell.name}.*{_GOING}"), *folder.glob(f".*{_GOING}")):
        shutil.rmtree(left_over, ignore_errors=True)
    for path in (folder,) if cell.kind == "trial" else (folder / name for name in _DELETED):
        _delete(path)


def _delete(folder: Path) -> None:
    """Delete a folder, which is gone at once for whoever looks: a kill leaves no half of it under its name."""
    if folder.exists():
        going = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{_GOING}")
        folder.replace(going)
        shutil.rmtree(going, ignore_errors=True)


def units_of(scores: ScoreTable) -> dict[str, dict[str, float]]:
    """Return what a score is the plain mean of: `{metric: {image or volume: value from 0 to 1}}`.

    Two models are compared unit by unit: by images for mIoU and F1, by volumes for DSC.
    """
    images = scores.image_scores()
    units = {
        "miou": {name: iou for name, (iou, _) in images.items()},
        "f1": {name: f1 for name, (_, f1) in images.items()},
    }
    volumes = {name: sum(organs.values()) / len(organs) for name, organs in scores.volume_dice().items()}
    return {**units, "dsc": volumes} if volumes else units


def _prepare(folder: Path) -> bool:
    """Clear what a killed command left before its run began, and say whether there is a run to go on with."""
    if (folder / "settings.json").is_file():
        return True
    _delete(folder)
    return False


def scores_of(
    workspace: Workspace, model: Any, sets: Sequence[tuple[Any, EvalSettings]], settings: TrainSettings
) -> list[ScoreTable]:
    """Return the scores of a model that is not trained, from cached features where the settings say so.

    Args:
        workspace: For the processor.
        model: What to score; it moves to the device of the settings.
        sets: Data sets, each with how it is scored.
        settings: Device and cache.
    """
    model = model.to(settings.device)
    cache = open_cache(model, workspace.processor, settings)
    if cache is None:
        return [evaluate(model, workspace.processor, dataset, scoring) for dataset, scoring in sets]
    for dataset, _ in sets:
        cache.fill(dataset)
    with cache.feeding() as fed:
        return [evaluate(model, fed, dataset, scoring) for dataset, scoring in sets]


def _plain(value: Any) -> Any:
    """Put null for a mean over nothing, as JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value
