"""A score table as text: numbers in percent, each with its definition."""

import math
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import ScoreTable

_TITLES = {
    "instance_image_mean": "instance-image mean",
    "instance_mean": "all-instance mean",
    "class_mean": "class mean",
    "global_pixels": "global pixels",
}


def report(table: "ScoreTable") -> str:
    """Formats a table for the terminal, at most 100 columns wide."""
    summary, definitions = table.summary(), table.definitions()
    lines = [f"{_count(summary['instances'], 'instance')} in {_count(summary['images'], 'image')}"]
    if summary["not_counted"]:
        lines[0] += f", {summary['not_counted']:,} of them not counted"
    lines += ["", f"{'':<22}{'mIoU %':>8}{'F1 %':>8}"]
    lines += [_row(title, summary[name]["miou"], summary[name]["f1"]) for name, title in _TITLES.items()]
    if "volume_dsc" in summary:
        volume = summary["volume_dsc"]
        lines += ["", f"{'volume DSC':<22}{_percent(volume['dsc']):>8} %   {_count(volume['volumes'], 'volume')}"]
        lines += [f"  {name:<20}{_percent(dice):>8} %" for name, dice in volume["per_class"].items()]
    if len(summary["per_class"]) > 1:
        lines += ["", f"{'class':<22}{'mIoU %':>8}{'F1 %':>8}{'instances':>11}"]
        for name, scores in summary["per_class"].items():
            lines.append(_row(name, scores["miou"], scores["f1"]) + f"{scores['instances']:>11,}")
    lines.append("")
    for name, text in definitions.items():
        if name == "not_counted" and not summary["not_counted"]:
            continue
        title = _TITLES.get(name, name.replace("_dsc", " DSC").replace("_", " "))
        lines += textwrap.wrap(f"{title}: {text}", width=100, subsequent_indent="  ")
    return "\n".join(lines)


def _row(title: str, miou: float, f1: float) -> str:
    return f"{title:<22}{_percent(miou):>8}{_percent(f1):>8}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
