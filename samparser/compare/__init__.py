"""Every method side by side on data sets: experiments as JSON files, results as JSON files and a Markdown table."""

from .experiment import DataSource, Experiment, MethodRow, Search, load_experiment
from .strict import ExperimentError

__all__ = ["DataSource", "Experiment", "ExperimentError", "MethodRow", "Search", "load_experiment"]
