"""The figure of a comparison: test images with the masks that trained rows predict for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samparser.data import Sample
from samparser.drawing.panels import Panel, draw_panels
from samparser.methods import load_trained
from samparser.prediction import predict

from .collect import Column, Report
from .experiment import MethodRow
from .plan import Cell
from .strict import ExperimentError
from .workspace import Workspace


def draw_figure(workspace: Workspace, report: Report) -> Path | None:
    """Write `NAME.png` with the experiment's panels: image, ground truth, and one panel for each row.

    The rows are those of the first seed, prompted with the tight boxes of the ground truth.

    Args:
        workspace: Model and data.
        report: The finished comparison.

    Returns:
        The path written, or None where the experiment has no panels, or none of their rows was selected.

    Raises:
        ExperimentError: The run folder of a result was deleted.
    """
    experiment = workspace.experiment
    wanted = experiment.panels.rows if experiment.panels is not None else []
    known = {row.name: row for row in experiment.methods}
    rows = [known[name] for name in wanted if name in known]
    if not rows:
        return None
    panels = [panel for column in report.columns for panel in _panels(workspace, column, rows)]
    return draw_panels(panels, workspace.output / f"{experiment.name}.png")


def _panels(workspace: Workspace, column: Column, rows: list[MethodRow]) -> list[Panel]:
    samples = _drawn(workspace, column)
    masks = {row.label: _masks(workspace, column, row, samples) for row in rows}
    return [
        Panel(sample.image, sample.masks, {label: made[i] for label, made in masks.items()}, column.source.title)
        for i, sample in enumerate(samples)
    ]


def _drawn(workspace: Workspace, column: Column) -> list[Sample]:
    panels = workspace.experiment.panels
    assert panels is not None
    test_set = workspace.sets(column.source)[1]
    order = np.random.default_rng([panels.seed, 4]).permutation(len(test_set)).tolist()
    # Large sets are not looked through before; an image without instance has nothing to show.
    samples: list[Sample] = []
    for index in order:
        sample = test_set[index]
        samples += [sample] if sample.instances else []
        if len(samples) == panels.images:
            break
    return samples


def _masks(workspace: Workspace, column: Column, row: MethodRow, samples: list[Sample]) -> list[np.ndarray]:
    experiment = workspace.experiment
    cell = Cell(**column.runs[row.name][0]["cell"])
    if cell.kind == "once":
        model = workspace.tuned(row)
    else:
        adapter = workspace.output / "runs" / cell.name / "adapter"
        if not adapter.is_dir():
            raise ExperimentError(
                f"The figure needs {adapter}, which is not there any more. Delete {workspace.output}/results/"
                f"{cell.name}.json to train it again, or take `panels` out of the experiment."
            )
        model = load_trained(workspace.new_model(), adapter)
    model = model.to(experiment.train_settings(column.source, row).device)
    return [predict(model, workspace.processor, sample.image, sample.boxes) for sample in samples]
