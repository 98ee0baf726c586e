"""Every method side by side on data sets: experiments as JSON files, results as JSON files and a Markdown table.

report = compare(load_experiment("experiments/mini-nuclei.json"), output="compare/mini-nuclei")
"""

from __future__ import annotations

from .collect import Column, Report
from .experiment import DataSource, Experiment, MethodRow, ScoredSource, Search, with_settings
from .experiment_file import load_experiment, parse_experiment
from .launcher import parse_options
from .pages import markdown
from .run import compare, select
from .strict import ExperimentError
from .tasks import CellError

__all__ = [
    "CellError",
    "Column",
    "DataSource",
    "Experiment",
    "ExperimentError",
    "MethodRow",
    "Report",
    "ScoredSource",
    "Search",
    "compare",
    "load_experiment",
    "markdown",
    "parse_experiment",
    "parse_options",
    "select",
    "with_settings",
]
