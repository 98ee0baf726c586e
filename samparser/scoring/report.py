"""Score report: the averages of a table as text, in percent, each with its definition."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from samparser._words import count

# Our name, how it is printed, and what the field calls such an average (torchmetrics' words).
AVERAGES = {
    "instance_image_mean": ("instance-image mean", "samplewise macro"),
    "instance_mean": ("all-instance mean", "macro over instances"),
    "class_mean": ("class mean", "macro over classes"),
    "global_pixels": ("global pixels", "global micro"),
}


def report(summary: Mapping[str, Any], definitions: Mapping[str, str]) -> str:
    """Return a table for the terminal, at most 100 columns wide.

    Args:
        summary: As `ScoreTable.summary` gives it.
        definitions: As `ScoreTable.definitions` gives them.
    """
    lines = [f"{count(summary['instances'], 'instance')} in {count(summary['images'], 'image')}"]
    if summary["not_counted"]:
        lines[0] += f", {summary['not_counted']:,} of them not counted"
    lines += ["", _row("", "mIoU %", "F1 %")]
    for name, (title, known_as) in AVERAGES.items():
        lines.append(f"{_scores(title, summary[name])}   {known_as}")
    if "volume_dsc" in summary:
        volume = summary["volume_dsc"]
        lines += ["", f"{'volume DSC':<22}{_percent(volume['dsc']):>8} %   {count(volume['volumes'], 'volume')}"]
        lines += [f"  {name:<20}{_percent(dice):>8} %" for name, dice in volume["per_class"].items()]
    if len(summary["per_class"]) > 1:
        lines += ["", _row("class", "mIoU %", "F1 %") + f"{'instances':>11}"]
        lines += [
            _scores(name, scores) + f"{scores['instances']:>11,}" for name, scores in summary["per_class"].items()
        ]
    lines.append("")
    for name, text in definitions.items():
        if name == "not_counted" and not summary["not_counted"]:
            continue
        title = AVERAGES[name][0] if name in AVERAGES else name.replace("_dsc", " DSC").replace("_", " ")
        lines += textwrap.wrap(f"{title}: {text}", width=100, subsequent_indent="  ")
    return "\n".join(lines)


def _scores(title: str, scores: Mapping[str, float]) -> str:
    return _row(title, _percent(scores["miou"]), _percent(scores["f1"]))


def _row(title: str, miou: str, f1: str) -> str:
    return f"{title:<22}{miou:>8}{f1:>8}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
