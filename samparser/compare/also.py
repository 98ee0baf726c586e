"""The other set of an experiment: the untuned model's scores on it, and that nothing trains on its images."""

from __future__ import annotations

import json
from typing import Any

from samparser.methods import build
from samparser.training import TrainSettings
from samparser.training.environment import git_state, versions
from samparser.training.leakage import shared_image
from samparser.training.settings import OF_A_CACHE

from .cell import also_entry, scores_of
from .strict import ExperimentError
from .workspace import Workspace, also_settings

# Name of the result file, and what it holds.
BEFORE = "also--before"
BEFORE_FIELDS = ("settings", "also", "versions", "git")


def before_settings(workspace: Workspace) -> dict[str, Any]:
    """Return all that decides the scores of the untuned model on the other set, as plain values."""
    settings = {
        "model": {"name": workspace.experiment.model, "weights": workspace.weights},
        "cached": _cached(workspace),
        "also": also_settings(workspace),
    }
    return dict(json.loads(json.dumps(settings)))


def score_before(workspace: Workspace) -> dict[str, Any]:
    """Score the untuned model on the other set, as rows that train nothing do, and return its result file's content."""
    experiment = workspace.experiment
    features = str(workspace.output / "features") if _cached(workspace) else None
    without = OF_A_CACHE if features is None else {}
    settings = TrainSettings(**{**experiment.training, **without, "report_to": "none", "cache": features})
    sets = [(workspace.also_set, experiment.also_eval_settings())]
    (scores,) = scores_of(workspace, build("zero-shot", workspace.new_model()), sets, settings)
    return {
        "settings": before_settings(workspace),
        "also": also_entry(scores),
        "versions": versions(),
        "git": git_state(),
    }


def refuse_trained_on(workspace: Workspace) -> None:
    """Look for an image of the other set among those to train on, before anything is trained.

    Raises:
        ExperimentError: There is one, and `allow_shared` is not set for every row.
    """
    experiment = workspace.experiment
    if experiment.also is None:
        return
    for source in experiment.data:
        twins = shared_image(workspace.sets(source)[0], workspace.also_set)
        allowed = all(experiment.train_settings(source, row).allow_shared for row in experiment.methods)
        if twins is not None and not allowed:
            raise ExperimentError(
                f"{experiment.name}: {twins[1]} of `also`, {experiment.also.name}, is an image that {source.name} "
                f"trains on ({twins[0]}), so nothing would be told of what is forgotten. Name another split, or set "
                "allow_shared in `training` to go on with a warning."
            )


def _cached(workspace: Workspace) -> bool:
    return any(source.cache for source in workspace.experiment.data)
