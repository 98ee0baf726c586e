"""A comparison as a Markdown page and as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samparser._files import write_text

from .collect import Column, Report
from .experiment import RATES, MethodRow
from .statistics import Difference, Spread
from .tables import DASH, cost_table, number, table

_COUNTED = (
    "1 K is 1024 parameters. 1 GMAC is 10^9 multiplications with additions, half of what are usually called FLOPs; "
    "matrix products, convolutions and attention are counted, for one image of the model's full size and one box.",
    "Methods of coefficients are counted in their factored form, U (p * (V x)); the layers choose for each shape what "
    "runs faster. Merged: the model to be deployed, which is the plain one where the method merges.",
    "A step is forward and backward of one training step; cached: with the features that enter the neck computed once "
    "and kept.",
)
_TITLES = {"miou": "mIoU", "f1": "F1", "dsc": "DSC"}


def write_report(report: Report, output: Path) -> tuple[Path, Path]:
    """Write `NAME.md` and `NAME.json` and return their paths."""
    page, numbers = output / f"{report.experiment.name}.md", output / f"{report.experiment.name}.json"
    write_text(numbers, json.dumps(report.to_json(), indent=1) + "\n")
    write_text(page, markdown(report))
    return page, numbers


def markdown(report: Report) -> str:
    """Write the page: overview, one table per data set, costs, learning rates, conventions.

    An experiment without data sets has a table of what its rows cost alone.
    """
    experiment = report.experiment
    parts = [f"# {experiment.title}", _intro(report)]
    if len(report.columns) > 1:
        parts += ["## Overview", _overview(report)]
    for column in report.columns:
        parts += [f"## {column.source.title}", _scores(report, column)]
    if not report.columns:
        parts.append(cost_table(report))
    elif experiment.panels is not None:
        parts += ["## Figure", f"![image, ground truth and predictions]({experiment.name}.png)"]
    if report.columns and report.costs:
        parts += ["## Cost", cost_table(report), _measured(next(iter(report.costs.values())))]
    if report.columns:
        parts += ["## Training", _training(report)]
    notes = (*_conventions(report), *experiment.notes)
    parts += ["## How to read this", "\n".join(f"- {line}" for line in notes)]
    return "\n\n".join(parts) + "\n"


def _intro(report: Report) -> str:
    experiment = report.experiment
    if not report.columns:
        return f"Model: `{experiment.model}`, counted from its configuration, without data or weights."
    seeds = ", ".join(map(str, experiment.seeds))
    sizes = "; ".join(
        f"{column.source.title}: {column.train_images} training and {column.test_images} test images"
        for column in report.columns
    )
    return f"Model: `{experiment.model}`. Seeds: {seeds}. {sizes}."


def _overview(report: Report) -> str:
    pairs = [(column, metric) for column in report.columns for metric in column.source.metrics]
    head = ["", *(f"{column.source.title} {_TITLES[metric]}" for column, metric in pairs)]
    lines = []
    for row in report.experiment.methods:
        cells = []
        for column, metric in pairs:
            paper = report.paper(row.name, column.source.name, metric)
            ours = _percent(column.score(row.name, metric), deviation=False)
            cells.append(ours if paper is None else f"{ours} ({paper:g})")
        lines.append([row.label, *cells])
    return "Ours, and in parentheses the paper's, in percent.\n\n" + table(head, lines)


def _scores(report: Report, column: Column) -> str:
    name, reference = column.source.name, report.experiment.reference
    against = report.experiment.row(reference).label
    has_paper = any(name in columns for columns in report.experiment.paper.values())
    head = [""]
    for metric in column.source.metrics:
        title = _TITLES[metric]
        head += [f"{title} %", *(["paper"] if has_paper else [])]
        head += [f"{title} against {against}", *(["paper"] if has_paper else [])]
    if column.before is not None:
        head.append(f"{_also_title(report)}: mIoU against {_untuned(report, column)}")
    lines = []
    for row in report.experiment.methods:
        cells = [row.label]
        for metric in column.source.metrics:
            paper = report.paper(row.name, name, metric)
            cells += [_percent(column.score(row.name, metric)), *([number(paper)] if has_paper else [])]
            if row.name == reference:
                cells += [DASH] * (1 + has_paper)
                continue
            cells.append(_difference(column.difference(row.name, reference, metric)))
            if has_paper:
                cells.append(number(report.paper_difference(row.name, name, metric), form="+.1f"))
        if column.before is not None:
            cells.append(_difference(column.forgetting(row.name)))
        lines.append(cells)
    return table(head, lines)


def _also_title(report: Report) -> str:
    return report.experiment.also.title if report.experiment.also is not None else ""


def _untuned(report: Report, column: Column) -> str:
    """Return what forgetting is taken against, in words."""
    return "zero-shot" if column.before_row is None else report.experiment.row(column.before_row).label


def _measured(cost: dict[str, Any]) -> str:
    where = f"on {cost['device']}" + (f" with {cost['threads']} threads" if cost["device"] == "cpu" else "")
    return (
        f"One image of the model's full size, one box, no cache, {where}; times are medians of {cost['rounds']} steps "
        "that alternate with the reference's. 1 K is 1024 parameters, 1 GMAC 10^9 multiplications with their additions."
    )


def _training(report: Report) -> str:
    head = ["data", "row", "from cache", "s / step", "rates", "trials (rates: score on the images held out)"]
    lines = []
    metric = report.experiment.search.metric if report.experiment.search else "miou"
    for column in report.columns:
        for row in report.experiment.methods:
            seconds, rates = column.seconds_per_step(row.name), column.rates(row.name)
            if column.trials.get(row.name) is None:
                continue
            trials = []
            for trial in column.trials[row.name]:
                text = f"{_rates(trial['rates'])}: {number(trial['scores']['instance_image_mean'][metric], 100)}"
                trials.append(f"**{text}**" if trial["rates"] == rates else text)
            lines.append(
                [
                    column.source.title,
                    row.label,
                    "yes" if column.cached(row.name) else "no",
                    number(seconds, form=".3g"),
                    (_rates(rates) or _rates(_set_rates(report, column, row))) + _edge(report, row, rates),
                    "; ".join(trials) or DASH,
                ]
            )
    return table(head, lines)


def _set_rates(report: Report, column: Column, row: MethodRow) -> dict[str, float]:
    settings = report.experiment.train_settings(column.source, row)
    rates = {"learning_rate": settings.learning_rate, "coefficient_lr": settings.coefficient_lr}
    return {name: rate for name, rate in rates.items() if rate and (name in RATES[:1] or rate != rates[RATES[0]])}


def _edge(report: Report, row: MethodRow, rates: dict[str, float]) -> str:
    """Add a word where the best rate is the smallest or largest that was tried, so that a better one may lie beyond."""
    for name, value in rates.items():
        tried = [trial[name] for trial in report.experiment.trials(row) if name in trial]
        if len(set(tried)) > 1 and value in (min(tried), max(tried)):
            return " (edge)"
    return ""


def _conventions(report: Report) -> Iterable[str]:
    experiment, seeds = report.experiment, len(report.experiment.seeds)
    label = experiment.row(experiment.reference).label
    if not report.columns:
        yield f"Extra: beyond {label}. {_COUNTED[0]}"
        yield from _COUNTED[1:]
        return
    yield "Scores: mean ± standard deviation over seeds" + (" (one seed: no deviation)." if seeds == 1 else ".")
    definitions: dict[str, str] = {}
    for column in report.columns:
        for results in column.runs.values():
            definitions |= results[0]["definitions"]
    yield f"mIoU and F1: {definitions['instance_image_mean']}"
    if any("dsc" in column.source.metrics for column in report.columns) and "volume_dsc" in definitions:
        yield f"DSC: {definitions['volume_dsc']}"
    masks: dict[str, list[str]] = {}
    for row in experiment.methods:
        if (said := report.columns[0].masks(row.name)) is not None:
            masks.setdefault(said, []).append(row.label)
    yield from (f"Masks of {', '.join(labels)}: {said}" for said, labels in masks.items())
    yield (
        f"Against {label}: mean difference ± standard error, paired: same test images and seeds on both sides, both "
        "counted as samples (DSC: volumes in place of images)."
        + (" With one seed the error does not hold what another seed would change." if seeds == 1 else "")
    )
    yield (
        "≈ marks differences within two standard errors, or within as many as Student's t asks for where few seeds or "
        "images make the error itself uncertain: they support no order. Among twenty differences without any effect "
        "about one is expected to lie outside."
    )
    if (before := report.columns[0].before) is not None:
        untuned, images = _untuned(report, report.columns[0]), len(before["units"]["miou"])
        score = number(before["scores"]["instance_image_mean"]["miou"], 100)
        yield (
            f"{_also_title(report)}: mIoU against {untuned}: what is forgotten. The models of each table on {images} "
            f"images of {_also_title(report)}, prompted with tight boxes whatever they train with, minus {untuned} "
            f"there ({score} %), in points, paired by seed and image; below 0 is lost. Nothing is chosen by it."
        )
    if any(column.cached(row.name) for column in report.columns for row in experiment.methods):
        yield (
            "Rows that train nothing before the neck are trained and scored from cached features; their seconds a step "
            "are not comparable with those of the others. The table of costs compares steps without a cache."
        )
    if experiment.search is not None:
        trials = experiment.trials(experiment.methods[0])
        epochs = experiment.search.epochs
        yield (
            f"Learning rates: {len(trials)} trials for every row and data set, "
            f"{'as long as the final training' if epochs is None else f'{epochs:g} epochs'}, scored on "
            f"{experiment.search.held_out:.0%} of the training images; the test images take no part. "
            "(edge): the chosen rate is the smallest or largest tried."
        )


def _percent(score: Spread | None, *, deviation: bool = True) -> str:
    if score is None:
        return DASH
    text = f"{100 * score.mean:.1f}"
    return f"{text} ± {100 * score.deviation:.1f}" if deviation and score.deviation is not None else text


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return DASH
    text = f"{100 * difference.mean:+.2f}"
    if difference.error is None:
        return f"≈ {text}"
    return f"{'' if difference.clear else '≈ '}{text} ± {100 * difference.error:.2f}"


def _rates(rates: dict[str, float]) -> str:
    words = {"learning_rate": "lr", "coefficient_lr": "coefficients"}
    return ", ".join(f"{words[name]} {value:g}" for name, value in rates.items())
