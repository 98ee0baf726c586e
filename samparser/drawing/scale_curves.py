"""Scale curves: a score with its error against the scale of an adapter, one line for each adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .figures import new_figure, save_picture
from .palette import BLACK, LINE_COLOURS, LINE_DASHES

Points = Sequence[tuple[float, float]]


def scale_curves(
    curves: Mapping[str, Mapping[str, tuple[Sequence[float], Points]]],
    path: str | Path,
    *,
    ground: str = "",
    note: str = "band: one standard error",
) -> Path:
    """Draw scores against the scale of adapters, one panel for each score.

    Args:
        curves: By the score's name, for instance "mIoU", and the adapter's: the scales, and for each the score with its
            error, both from 0 to 1; an error that is not a number draws no band.
        path: File to write; the suffix chooses the format.
        ground: What the scores are of, for the title.
        note: What the errors are, to stand below.

    Returns:
        The path written.

    Raises:
        ValueError: There is nothing to draw, or a curve has not one point for each scale.
        ImportError: matplotlib is missing.
    """
    if not curves or not all(curves.values()):
        raise ValueError("There is no curve to draw: give at least one score of one adapter.")
    figure = new_figure(5.2 * len(curves), 4.0)
    for axis, (score, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axis.axvline(0, color=BLACK, linewidth=0.8, alpha=0.5)
        axis.axvline(1, color=BLACK, linewidth=0.8, alpha=0.5)
        for number, (adapter, (scales, points)) in enumerate(lines.items()):
            if len(scales) != len(points):
                raise ValueError(f"{adapter}: {len(scales)} scales have {len(points)} points of {score}.")
            colour = LINE_COLOURS[number % len(LINE_COLOURS)]
            order = sorted(range(len(scales)), key=lambda at: scales[at])
            x, y = [scales[at] for at in order], [100 * points[at][0] for at in order]
            errors = [0.0 if math.isnan(points[at][1]) else 100 * points[at][1] for at in order]
            axis.plot(x, y, marker="o", markersize=4, color=colour, label=adapter, linestyle=LINE_DASHES[number % 6])
            low, high = ([v + sign * e for v, e in zip(y, errors, strict=True)] for sign in (-1, 1))
            axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            best = max(range(len(y)), key=lambda at: y[at])
            axis.plot(x[best], y[best], marker="*", markersize=13, color=colour, markeredgecolor=BLACK)
        axis.set_xlabel("scale of the adapter (0: base model, 1: as trained)")
        axis.set_ylabel(f"{score} (%)")
        axis.set_title(f"{score}{f', {ground}' if ground else ''}", fontsize=11)
        axis.legend(frameon=False, fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    figure.supxlabel(f"star: best; {note}", fontsize=8)
    return save_picture(figure, path)
