"""Markdown tables, among them those of what each row costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .collect import Report

DASH = "–"
# The paper's K; a GMAC is 10^9 multiply-accumulates.
_K, _G, _MIB = 1 / 1024, 1e-9, 1 / 2**20


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table whose columns but the first are aligned to the right.

    >>> print(table(["", "mIoU"], [["decoder", "81.2"]]))
    |  | mIoU |
    |---|--:|
    | decoder | 81.2 |
    """
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (head, *lines)]
    return "\n".join([rows[0], "|---|" + "--:|" * (len(head) - 1), *rows[1:]])


def number(value: float | None, times: float = 1, form: str = ".1f") -> str:
    """Write a number that may not be there.

    >>> number(0.8125, 100), number(2.0, form="+.1f"), number(None)
    ('81.2', '+2.0', '–')
    """
    return DASH if value is None else format(times * value, form)


def cost_table(report: Report) -> str:
    """Write what each row costs, with the paper's figures beside: counted, and measured where the rows were trained."""
    experiment = report.experiment
    rows = [row for row in experiment.methods if row.name in report.costs]
    costs = [report.costs[row.name] for row in rows]
    reference, base = experiment.row(experiment.reference), report.costs[experiment.reference]
    paper_k, paper_gmac = [row.paper_trained_k for row in rows], [row.paper_gmac for row in rows]
    columns = [[row.label for row in rows]]
    head = [""]

    def add(title: str, values: Iterable[float | None], times: float = 1, form: str = ".1f") -> None:
        head.append(title)
        columns.append([number(value, times, form) for value in values])

    add("trained (K)", [cost["trained"] for cost in costs], _K)
    if any(paper_k):
        add("paper", paper_k)
    if not report.columns:
        add("extra (K)", [cost["trained"] - base["trained"] for cost in costs], _K, "+.1f")
        add("paper", _beyond(paper_k, reference.paper_trained_k), form="+.1f")
    add("file (KB)", [cost["bytes"] for cost in costs], _K, ",.0f")
    add("forward (GMAC)", [cost["macs"]["forward"] for cost in costs], _G, ".2f")
    if not report.columns:
        add("paper", paper_gmac)
        add("extra", [cost["macs"]["forward"] - base["macs"]["forward"] for cost in costs], _G, "+.2f")
        add("paper", _beyond(paper_gmac, reference.paper_gmac), form="+.1f")
        add("extra merged", [cost["macs"]["merged"] - base["macs"]["merged"] for cost in costs], _G, "+.2f")
    else:
        add("merged (GMAC)", [cost["macs"]["merged"] for cost in costs], _G, ".2f")
    for title, name in (("step (GMAC)", "step"), ("cached step (GMAC)", "cached_step")):
        add(title, [cost["macs"][name] if cost["trained"] else None for cost in costs], _G, ".4g")
    if report.columns:
        add("step (s)", [cost["step_seconds"] for cost in costs], form=".3g")
        add("of the reference's", [cost["step_ratio"] for cost in costs], form=".2f")
        add("peak above model (MiB)", [cost["peak_bytes"] for cost in costs], _MIB, ",.0f")
    return table(head, zip(*columns, strict=True))


def _beyond(values: Iterable[float | None], reference: float | None) -> list[float | None]:
    return [None if value is None or reference is None else value - reference for value in values]
