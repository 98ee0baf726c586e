"""The numbers of a comparison, put together from its result files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .experiment import DataSource, Experiment, to_json
from .statistics import Difference, Spread, paired_difference, spread

Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Column:
    """The results on one data set.

    Attributes:
        source: The data set.
        runs: For each row one result per seed, or a single one where nothing is trained.
        trials: For each row the results of its trials, in their order.
        train_images: Images to train on.
        test_images: Images that are scored.
        before: Scores of the untuned model on the experiment's other set, as result files hold them under `also`; None
            where there is no other set.
        before_row: The row that they are of; None where no row of the experiment trains nothing.
    """

    source: DataSource
    runs: Results
    trials: Results
    train_images: int
    test_images: int
    before: dict[str, Any] | None = None
    before_row: str | None = None

    def score(self, row: str, metric: str) -> Spread | None:
        """Return mean and deviation over seeds, from 0 to 1; None where a metric is not defined on this set."""
        values = [score_of(result, metric) for result in self.runs[row]]
        return spread([value for value in values if value is not None]) if None not in values else None

    def difference(self, row: str, reference: str, metric: str) -> Difference | None:
        """Return the row minus the reference, paired by seed and by image (or volume)."""
        mine, theirs = self.runs[row], self.runs[reference]
        # What trains nothing is the same for every seed of the other side.
        mine, theirs = mine * (len(theirs) // len(mine) or 1), theirs * (len(mine) // len(theirs) or 1)
        if any(metric not in result["units"] for result in (*mine, *theirs)):
            return None
        return paired_difference([r["units"][metric] for r in mine], [r["units"][metric] for r in theirs])

    def also_score(self, row: str) -> Spread | None:
        """Return mean and deviation over seeds of the mIoU on the other set, from 0 to 1; None where nothing scores."""
        values = [score_of(result["also"], "miou") for result in self.runs[row]]
        return spread([value for value in values if value is not None]) if None not in values else None

    def forgetting(self, row: str) -> Difference | None:
        """Return the row's mIoU on the other set minus the untuned model's, paired by seed and image: negative is lost.

        None without another set, and for the row that the others are taken against.
        """
        if self.before is None or row == self.before_row:
            return None
        mine = [result["also"]["units"]["miou"] for result in self.runs[row]]
        return paired_difference(mine, [self.before["units"]["miou"]] * len(mine))

    def seconds_per_step(self, row: str) -> float | None:
        """Return the median over seeds; None for runs that were stopped in between and where nothing is trained."""
        known = [seconds for result in self.runs[row] if (seconds := result["time"]["seconds_per_step"]) is not None]
        return median(known) if known else None

    def cached(self, row: str) -> bool:
        """Tell whether the row was trained and scored from cached features."""
        return bool(self.runs[row][0]["time"]["cached"])

    def masks(self, row: str) -> str | None:
        """Return whose masks were scored, as a sentence; None in families that have one way only."""
        return self.runs[row][0]["definitions"].get("masks")

    def rates(self, row: str) -> dict[str, float]:
        """Return the learning rates that the row was trained with, as far as the search chose them."""
        return self.runs[row][0]["rates"]


@dataclass(frozen=True)
class Report:
    """A whole comparison.

    Attributes:
        experiment: What was run.
        columns: One for each data set.
        costs: What was counted and measured of each row; empty where that was not asked for.
    """

    experiment: Experiment
    columns: Sequence[Column]
    costs: dict[str, dict[str, Any]]

    def paper(self, row: str, data: str, metric: str) -> float | None:
        """Return what the paper reports, in percent."""
        return self.experiment.paper.get(row, {}).get(data, {}).get(metric)

    def paper_difference(self, row: str, data: str, metric: str) -> float | None:
        """Return the paper's difference to the reference, in points of percent."""
        mine, theirs = (self.paper(name, data, metric) for name in (row, self.experiment.reference))
        return None if mine is None or theirs is None else round(mine - theirs, 2)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values: experiment, scores, differences, trials, costs, versions."""
        return {
            "experiment": to_json(self.experiment),
            "data": {column.source.name: self._column(column) for column in self.columns},
            "costs": self.costs,
            "versions": self._distinct("versions"),
            "git": self._distinct("git"),
        }

    def _column(self, column: Column) -> dict[str, Any]:
        before = None
        if column.before is not None:
            before = {"row": column.before_row, "miou": score_of(column.before, "miou")}
        return {
            **({} if before is None else {"also_before": before}),
            "train_images": column.train_images,
            "test_images": column.test_images,
            "rows": {row.name: self._row(column, row.name) for row in self.experiment.methods},
        }

    def _row(self, column: Column, row: str) -> dict[str, Any]:
        metrics = {}
        for metric in column.source.metrics:
            score, difference = (
                column.score(row, metric),
                column.difference(row, self.experiment.reference, metric),
            )
            metrics[metric] = {
                "mean": score.mean if score else None,
                "deviation": score.deviation if score else None,
                "seeds": [score_of(result, metric) for result in column.runs[row]],
                "paper_percent": self.paper(row, column.source.name, metric),
                "difference": {**asdict(difference), "clear": difference.clear} if difference else None,
                "paper_difference_percent": self.paper_difference(row, column.source.name, metric),
            }
        return {
            "metrics": metrics,
            **({} if column.before is None else {"also": self._also(column, row)}),
            "rates": column.rates(row),
            "trials": [
                {"rates": trial["rates"], "scores": trial["scores"]["instance_image_mean"]}
                for trial in column.trials.get(row, [])
            ],
            "trained": column.runs[row][0]["trained"],
            "seconds_per_step": column.seconds_per_step(row),
            "cached": column.cached(row),
            "masks": column.masks(row),
        }

    def _also(self, column: Column, row: str) -> dict[str, Any]:
        score, lost = column.also_score(row), column.forgetting(row)
        return {
            "mean": score.mean if score else None,
            "deviation": score.deviation if score else None,
            "seeds": [score_of(result["also"], "miou") for result in column.runs[row]],
            "difference": {**asdict(lost), "clear": lost.clear} if lost else None,
        }

    def _distinct(self, field: str) -> list[Any]:
        """Return what the results were made with; more than one entry where the versions changed in between."""
        found: list[Any] = []
        for column in self.columns:
            for results in (*column.runs.values(), *column.trials.values()):
                found += [result[field] for result in results if result[field] not in found]
        return found


def score_of(result: dict[str, Any], metric: str) -> float | None:
    """Return a score of a result, from 0 to 1; None where it is not defined."""
    if metric == "dsc":
        return result["scores"].get("volume_dsc", {}).get("dsc")
    return result["scores"]["instance_image_mean"][metric]
