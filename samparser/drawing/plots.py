"""Learning curves of a run, and the spectra of its coefficients before and after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .figures import new_figure, save_picture
from .palette import BLACK, BLUE, LINE_COLOURS, LINE_DASHES, VERMILION

_LOSSES = {"loss": "loss (Eq. 5)", "ce": "cross-entropy", "focal": "focal", "dice": "Dice loss"}
_SCORES = {"eval_miou": "mIoU", "eval_f1": "F1 (= Dice)"}
_BEFORE = {"eval_miou": "before_miou", "eval_f1": "before_f1"}


def score_curves(log: str | Path, path: str | Path) -> Path:
    """Draw the training loss with its terms, and the validation scores, over the steps of a run.

    Args:
        log: `log.jsonl` of a run: one JSON object per line with `step` and any of `loss`, `ce`, `focal`,
            `dice`, `eval_miou`, `eval_f1`; `before_miou` and `before_f1`, the scores before the first step,
            are drawn as level lines. Other keys are ignored, and so is a last line cut off by a kill.
        path: File to write; the suffix chooses the format.

    Returns:
        The path written.

    Raises:
        ValueError: A line is not JSON, or no line has anything to draw.
        ImportError: matplotlib is missing.
    """
    rows = read_log(log)
    series = {key: _series(rows, key) for key in (*_LOSSES, *_SCORES)}
    # A term that is zero throughout (focal at lambda = 0) is not part of the loss.
    series = {key: points for key, points in series.items() if len(points) and (key == "loss" or points[:, 1].any())}
    panels = [labels for labels in (_LOSSES, _SCORES) if any(key in series for key in labels)]
    if not panels:
        raise ValueError(f"{log} has no row with any of {', '.join((*_LOSSES, *_SCORES))}: nothing to draw yet.")
    figure = new_figure(5.2 * len(panels), 3.6)
    for axis, labels in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [key for key in labels if key in series]
        percent = labels is _SCORES
        for key, colour, dash in zip(shown, LINE_COLOURS, LINE_DASHES, strict=False):
            steps, values = series[key].T
            values = 100 * values if percent else values
            marker = "o" if len(values) <= 40 else None
            axis.plot(steps, values, color=colour, linestyle=dash, marker=marker, markersize=4, label=labels[key])
            if percent:
                start = _series(rows, _BEFORE[key])
                if len(start):
                    axis.axhline(100 * start[0, 1], color=colour, linewidth=1, alpha=0.6)
                    label = f"{labels[key]} before tuning"
                    axis.annotate(
                        label,
                        (0.01, 100 * start[0, 1]),
                        xycoords=("axes fraction", "data"),
                        fontsize=8,
                        color=colour,
                        xytext=(0, 2),
                        textcoords="offset points",
                    )
                _mark_best(axis, steps, values, colour)
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_ylabel("validation score (%)" if percent else "training loss")
        axis.set_title("validation scores" if percent else "training loss", fontsize=11)
        axis.legend(frameon=False, fontsize=9)
        _plain(axis)
    return save_picture(figure, path)


def spectra(before: Any, after: Any, path: str | Path) -> Path:
    """Draw the coefficients of each layer before and after tuning, and how much each changed.

    Args:
        before: Coefficients (rank,) by the name of the layer, as tensors or arrays, largest first; or one such vector.
        after: The same layers after tuning.
        path: File to write; the suffix chooses the format.

    Returns:
        The path written.

    Raises:
        ValueError: The layers or their lengths differ, there is none, or a value is not finite.
        ImportError: matplotlib is missing.
    """
    layers, tuned = _vectors(before), _vectors(after)
    if list(layers) != list(tuned) or not layers:
        raise ValueError(f"Both sides need the same layers; got {list(layers)} before and {list(tuned)} after.")
    for name, vector in layers.items():
        if vector.shape != tuned[name].shape or vector.ndim != 1 or not vector.size:
            raise ValueError(
                f"{name}: coefficients are vectors of one length; got shapes {vector.shape} and {tuned[name].shape}."
            )
        if not (np.isfinite(vector).all() and np.isfinite(tuned[name]).all()):
            raise ValueError(f"{name}: a coefficient is not finite.")
    figure = new_figure(4.4 * len(layers), 5.2)
    axes = figure.subplots(2, len(layers), squeeze=False, sharex="col", height_ratios=[3, 2])
    for (name, vector), top, bottom in zip(layers.items(), *axes, strict=True):
        index, change = np.arange(1, len(vector) + 1), tuned[name] - vector
        top.plot(index, vector, color=BLACK, linewidth=2.5, alpha=0.35, label="before")
        top.plot(index, tuned[name], color=VERMILION, linewidth=1, linestyle="--", label="after")
        if (vector > 0).all() and (tuned[name] > 0).all() and vector.max() > 30 * vector.min():
            top.set_yscale("log")
        top.set_title(f"{name} ({len(vector)} coefficients)", fontsize=10)
        top.set_ylabel("coefficient p")
        top.legend(frameon=False, fontsize=9)
        bottom.bar(index, change, width=1.0, color=BLUE)
        bottom.axhline(0, color=BLACK, linewidth=0.6)
        bottom.set_ylabel("change of p")
        bottom.set_xlabel("index, largest first")
        norm = float(np.linalg.norm(vector))
        if norm > 0:
            share = 100 * float(np.linalg.norm(change)) / norm
            bottom.set_title(f"norm of the change: {share:.3g} % of the norm of p", fontsize=9)
        _plain(top)
        _plain(bottom)
    return save_picture(figure, path)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a `log.jsonl`; a last line that a kill cut off is left out.

    Raises:
        ValueError: Another line is not a JSON object; the message has its number.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        rows.append(row)
    return rows


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Return (step, value) of each row that has the key: (n, 2)."""
    points = [(row["step"], row[key]) for row in rows if "step" in row and isinstance(row.get(key), int | float)]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _vectors(coefficients: Any) -> dict[str, np.ndarray]:
    layers = coefficients if isinstance(coefficients, Mapping) else {"coefficients": coefficients}
    return {
        name: np.asarray(vector.detach().cpu() if hasattr(vector, "detach") else vector, dtype=np.float64)
        for name, vector in layers.items()
    }


def _mark_best(axis: Any, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    if not np.isfinite(values).any():
        return
    best = int(np.nanargmax(values))
    axis.plot(steps[best], values[best], marker="*", markersize=13, color=colour, markeredgecolor=BLACK)
    axis.annotate(
        f"{values[best]:.1f}",
        (steps[best], values[best]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=9,
    )
    axis.margins(y=0.15)


def _plain(axis: Any) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.set_axisbelow(True)
