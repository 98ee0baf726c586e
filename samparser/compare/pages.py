"""A comparison as a Markdown page and as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from samparser._files import write_text

from .collect import Column, Report
from .experiment import RATES, MethodRow
from .statistics import Difference, Spread

_TITLES = {"miou": "mIoU", "f1": "F1", "dsc": "DSC"}
_DASH = "–"


def write_report(report: Report, output: Path) -> tuple[Path, Path]:
    """Writes `NAME.md` and `NAME.json` and gives their paths."""
    page, numbers = output / f"{report.experiment.name}.md", output / f"{report.experiment.name}.json"
    write_text(numbers, json.dumps(report.to_json(), indent=1) + "\n")
    write_text(page, markdown(report))
    return page, numbers


def markdown(report: Report) -> str:
    """The page: overview, one table per data set, costs, learning rates, conventions."""
    if not report.columns:
        return _counts_page(report)
    parts = [f"# {report.experiment.title}", _intro(report)]
    if len(report.columns) > 1:
        parts += ["## Overview", _overview(report)]
    for column in report.columns:
        parts += [f"## {column.source.title}", _scores(report, column)]
    if report.experiment.panels is not None:
        parts += ["## Figure", f"![image, ground truth and predictions]({report.experiment.name}.png)"]
    if report.costs:
        parts += ["## Cost", _costs(report)]
    parts += ["## Training", _training(report)]
    notes = (*_conventions(report), *report.experiment.notes)
    parts += ["## How to read this", "\n".join(f"- {line}" for line in notes)]
    return "\n\n".join(parts) + "\n"


def _intro(report: Report) -> str:
    experiment = report.experiment
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
    lines = []
    for row in report.experiment.methods:
        cells = [row.label]
        for metric in column.source.metrics:
            paper = report.paper(row.name, name, metric)
            cells += [_percent(column.score(row.name, metric)), *([_number(paper)] if has_paper else [])]
            if row.name == reference:
                cells += [_DASH] * (1 + has_paper)
                continue
            cells.append(_difference(column.difference(row.name, reference, metric)))
            if has_paper:
                cells.append(_signed(report.paper_difference(row.name, name, metric)))
        lines.append(cells)
    return table(head, lines)


def _costs(report: Report) -> str:
    has_paper = any(row.paper_trained_k is not None for row in report.experiment.methods)
    head = ["", "trained (K)", *(["paper"] if has_paper else []), "file (KB)", "forward (GMAC)", "merged (GMAC)"]
    head += ["step (GMAC)", "cached step (GMAC)", "step (s)", "of the reference's", "peak above model (MiB)"]
    lines = []
    for row in report.experiment.methods:
        if row.name not in report.costs:
            continue
        cost = report.costs[row.name]
        macs, peak = cost["macs"], cost["peak_bytes"]
        paper = [_number(row.paper_trained_k)] if has_paper else []
        lines.append(
            [
                row.label,
                f"{cost['trained'] / 1024:.1f}",
                *paper,
                f"{cost['bytes'] / 1024:,.0f}",
                *(_giga(macs[name]) for name in ("forward", "merged", "step", "cached_step")),
                f"{cost['step_seconds']:.3g}",
                f"{cost['step_ratio']:.2f}",
                _DASH if peak is None else f"{peak / 2**20:,.0f}",
            ]
        )
    some = next(iter(report.costs.values()))
    where = f"on {some['device']}" + (f" with {some['threads']} threads" if some["device"] == "cpu" else "")
    note = (
        f"One image of the model's full size, one box, no cache, {where}; times are medians of {some['rounds']} steps "
        "that alternate with the reference's. 1 K is 1024 parameters, 1 GMAC 10^9 multiplications with their additions."
    )
    return f"{table(head, lines)}\n\n{note}"


def _counts_page(report: Report) -> str:
    """The page of an experiment without data sets: what its rows cost, and the paper's figures beside."""
    rows, reference = report.experiment.methods, report.experiment.row(report.experiment.reference)
    base = report.costs[reference.name]
    head = ["", "trained (K)", "paper", "extra (K)", "paper", "file (KB)", "forward (GMAC)", "paper"]
    head += ["extra", "paper", "extra merged", "step (GMAC)", "cached step (GMAC)"]
    lines = []
    for row in rows:
        cost = report.costs[row.name]
        macs, other = cost["macs"], base["macs"]
        lines.append(
            [
                row.label,
                f"{cost['trained'] / 1024:.1f}",
                _number(row.paper_trained_k),
                f"{(cost['trained'] - base['trained']) / 1024:+.1f}",
                _signed(_minus(row.paper_trained_k, reference.paper_trained_k)),
                f"{cost['bytes'] / 1024:,.0f}",
                f"{macs['forward'] / 1e9:.2f}",
                _number(row.paper_gmac),
                f"{(macs['forward'] - other['forward']) / 1e9:+.2f}",
                _signed(_minus(row.paper_gmac, reference.paper_gmac)),
                f"{(macs['merged'] - other['merged']) / 1e9:+.2f}",
                *(_giga(macs[name]) for name in ("step", "cached_step")),
            ]
        )
    notes = (
        f"Extra: beyond {reference.label}. 1 K is 1024 parameters. 1 GMAC is 10^9 multiplications with additions, "
        "half of what are usually called FLOPs; matrix products, convolutions and attention are counted, for one image "
        "of the model's full size and one box.",
        "Methods of coefficients are counted in their factored form, U (p * (V x)); the layers choose for each shape "
        "what runs faster. Merged: the model to be deployed, which is the plain one where the method merges.",
        "A step is forward and backward of one training step; cached: with the features that enter the neck computed "
        "once and kept.",
        *report.experiment.notes,
    )
    intro = f"Model: `{report.experiment.model}`, counted from its configuration, without data or weights."
    parts = [f"# {report.experiment.title}", intro, table(head, lines), "## How to read this"]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes)]) + "\n"


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


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
                text = f"{_rates(trial['rates'])}: {_number(trial['scores']['instance_image_mean'][metric], 100)}"
                trials.append(f"**{text}**" if trial["rates"] == rates else text)
            lines.append(
                [
                    column.source.title,
                    row.label,
                    "yes" if column.cached(row.name) else "no",
                    _DASH if seconds is None else f"{seconds:.3g}",
                    (_rates(rates) or _rates(_set_rates(report, column, row))) + _edge(report, row, rates),
                    "; ".join(trials) or _DASH,
                ]
            )
    return table(head, lines)


def _set_rates(report: Report, column: Column, row: MethodRow) -> dict[str, float]:
    settings = report.experiment.train_settings(column.source, row)
    rates = {"learning_rate": settings.learning_rate, "coefficient_lr": settings.coefficient_lr}
    return {name: rate for name, rate in rates.items() if rate and (name in RATES[:1] or rate != rates[RATES[0]])}


def _edge(report: Report, row: MethodRow, rates: dict[str, float]) -> str:
    """A word where the best rate is the smallest or largest that was tried, so that a better one may lie beyond."""
    for name, value in rates.items():
        tried = [trial[name] for trial in report.experiment.trials(row) if name in trial]
        if len(set(tried)) > 1 and value in (min(tried), max(tried)):
            return " (edge)"
    return ""


def _conventions(report: Report) -> Iterable[str]:
    experiment, seeds = report.experiment, len(report.experiment.seeds)
    label = experiment.row(experiment.reference).label
    yield "Scores: mean ± standard deviation over seeds" + (" (one seed: no deviation)." if seeds == 1 else ".")
    definitions: dict[str, str] = {}
    for column in report.columns:
        for results in column.runs.values():
            definitions |= results[0]["definitions"]
    yield f"mIoU and F1: {definitions['instance_image_mean']}"
    if any("dsc" in column.source.metrics for column in report.columns) and "volume_dsc" in definitions:
        yield f"DSC: {definitions['volume_dsc']}"
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


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns but the first are aligned to the right.

    >>> print(table(["", "mIoU"], [["decoder", "81.2"]]))
    |  | mIoU |
    |---|--:|
    | decoder | 81.2 |
    """
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], "|---|" + "--:|" * (len(head) - 1), *rows[1:]])


def _percent(score: Spread | None, *, deviation: bool = True) -> str:
    if score is None:
        return _DASH
    text = f"{100 * score.mean:.1f}"
    return f"{text} ± {100 * score.deviation:.1f}" if deviation and score.deviation is not None else text


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return _DASH
    text = f"{100 * difference.mean:+.2f}"
    if difference.error is None:
        return f"≈ {text}"
    return f"{'' if difference.clear else '≈ '}{text} ± {100 * difference.error:.2f}"


def _number(value: float | None, times: float = 1) -> str:
    return _DASH if value is None else f"{times * value:.1f}"


def _signed(value: float | None) -> str:
    return _DASH if value is None else f"{value:+.1f}"


def _giga(value: int | None) -> str:
    return _DASH if value is None else f"{value / 1e9:.4g}"


def _rates(rates: dict[str, float]) -> str:
    words = {"learning_rate": "lr", "coefficient_lr": "coefficients"}
    return ", ".join(f"{words[name]} {value:g}" for name, value in rates.items())
