"""Markdown tables, among them those of what each row costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .collect import Report
from .experiment import MethodRow

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
    """Write what was counted and measured of each row, with a sentence on how."""
    has_paper = any(row.paper_trained_k is not None for row in report.experiment.methods)
    head = ["", "trained (K)", *(["paper"] if has_paper else []), "file (KB)", "forward (GMAC)", "merged (GMAC)"]
    head += ["step (GMAC)", "cached step (GMAC)", "step (s)", "of the reference's", "peak above model (MiB)"]
    lines = []
    for row in report.experiment.methods:
        if row.name not in report.costs:
            continue
        cost = report.costs[row.name]
        line = [row.label, number(cost["trained"], _K)]
        line += [number(row.paper_trained_k)] if has_paper else []
        line.append(number(cost["bytes"], _K, ",.0f"))
        line += [number(cost["macs"][name], _G, ".4g") for name in ("forward", "merged", "step", "cached_step")]
        line += [number(cost["step_seconds"], form=".3g"), number(cost["step_ratio"], form=".2f")]
        lines.append([*line, number(cost["peak_bytes"], _MIB, ",.0f")])
    some = next(iter(report.costs.values()))
    where = f"on {some['device']}" + (f" with {some['threads']} threads" if some["device"] == "cpu" else "")
    note = (
        f"One image of the model's full size, one box, no cache, {where}; times are medians of {some['rounds']} steps "
        "that alternate with the reference's. 1 K is 1024 parameters, 1 GMAC 10^9 multiplications with their additions."
    )
    return f"{table(head, lines)}\n\n{note}"


def count_table(report: Report) -> str:
    """Write what was counted of each row, what it has beyond the reference, and the paper's figures beside."""
    reference = report.experiment.row(report.experiment.reference)
    head = ["", "trained (K)", "paper", "extra (K)", "paper", "file (KB)", "forward (GMAC)", "paper"]
    head += ["extra", "paper", "extra merged", "step (GMAC)", "cached step (GMAC)"]
    lines = [_counted(row, report.costs[row.name], reference, report.costs[reference.name])
             for row in report.experiment.methods]  # fmt: skip
    return table(head, lines)


def _counted(row: MethodRow, cost: dict[str, Any], reference: MethodRow, base: dict[str, Any]) -> list[str]:
    macs, other = cost["macs"], base["macs"]
    steps = (macs["step"], macs["cached_step"]) if cost["trained"] else (None, None)
    return [
        row.label,
        number(cost["trained"], _K),
        number(row.paper_trained_k),
        number(cost["trained"] - base["trained"], _K, "+.1f"),
        number(_minus(row.paper_trained_k, reference.paper_trained_k), form="+.1f"),
        number(cost["bytes"], _K, ",.0f"),
        number(macs["forward"], _G, ".2f"),
        number(row.paper_gmac),
        number(macs["forward"] - other["forward"], _G, "+.2f"),
        number(_minus(row.paper_gmac, reference.paper_gmac), form="+.1f"),
        number(macs["merged"] - other["merged"], _G, "+.2f"),
        *(number(step, _G, ".4g") for step in steps),
    ]


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
