"""Forgetting: the model's scores on another data set, before the first step and at the end, and the points lost."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from transformers import TrainerCallback

from samparser._files import write_text
from samparser._options import option
from samparser._words import count
from samparser.data.settings import DataSettings
from samparser.scoring.table import ScoreTable

from .eval_settings import EvalSettings
from .run_folder import RunFolder, RunFolderError
from .score_before import read_scores
from .trainer import SamTrainer

DEFINITION = (
    "Points of mIoU lost: the instance-image mean before the first step minus that at the end, in percent, on images "
    "that the run does not train on, each instance prompted with its tight box. The error is the standard error of the "
    "differences, paired by image; it does not hold what another seed of the training would change. Negative: gained."
)


@dataclass(frozen=True)
class AlsoSettings:
    """Another data set to score, with tight boxes, before the first step and at the end: what the model forgets.

    Raises:
        ValueError: A value is out of its range, or `also` is missing beside the others.
    """

    also: str | None = option(
        "Folder of another data set, or a COCO JSON file, on which the model is scored with tight boxes before the "
        "first step and at the end: the points lost there are what tuning made it forget.",
        None,
    )
    also_layout: str = option("Layout of that set, by the names that --layout takes; auto finds out.", "auto")
    also_split: str = option("Split of that set to score; all for every image.", "val")
    also_limit: int | None = option("Score only so many images of it, drawn at random; not given: all.", None)

    def __post_init__(self) -> None:
        if self.also is None and (self.also_layout, self.also_split, self.also_limit) != ("auto", "val", None):
            raise ValueError("also_layout, also_split and also_limit say what to take of a set; give its folder, also.")
        if self.also_limit is not None and self.also_limit < 1:
            raise ValueError(f"also_limit is {self.also_limit}; it must be at least 1.")

    def data_settings(self) -> DataSettings | None:
        """Return what `open_dataset` is told; None where no other set is scored."""
        if self.also is None:
            return None
        return DataSettings(data=self.also, layout=self.also_layout, limit=self.also_limit)


def tight(scoring: EvalSettings) -> EvalSettings:
    """Return settings that score with tight boxes, whatever the run's prompts are; only batch and precision are kept.

    >>> tight(EvalSettings(eval_jitter=20, eval_batch=8)).described()
    'The tight box of each instance.'
    """
    return EvalSettings(eval_prompt="box", eval_batch=scoring.eval_batch, eval_precision=scoring.eval_precision)


class ScoreAlsoBefore(TrainerCallback):
    """Score the other set when a run begins at its first step, and keep the table in the run folder."""

    def __init__(self, folder: RunFolder, dataset: Any, trainer: SamTrainer) -> None:
        self.folder, self.dataset, self.trainer = folder, dataset, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score; a resumed run that is past its first step has the table already."""
        if state.global_step > 0:
            return
        table = self.trainer.score(self.dataset, tuned=False, settings=tight(self.trainer.eval_settings))
        if state.is_world_process_zero:
            table.to_csv(self.folder.also_before)


@dataclass(frozen=True)
class Forgetting:
    """What tuning cost on another data set.

    Attributes:
        title: Name of the set.
        before: Scores before the first step.
        after: Scores at the end, of the same instances.

    Raises:
        ValueError: The tables are of different instances.
    """

    title: str
    before: ScoreTable
    after: ScoreTable

    def __post_init__(self) -> None:
        mine, theirs = ({(row.image, row.instance) for row in table.rows} for table in (self.before, self.after))
        if mine != theirs:
            raise ValueError(
                f"The scores before and after tuning are of {len(mine)} and {len(theirs)} instances, "
                f"{len(mine & theirs)} of which are the same: {self.title} has changed in between."
            )

    @property
    def differences(self) -> dict[str, float]:
        """Points of mIoU lost on each image; negative where it gained."""
        before, after = self.before.image_scores(), self.after.image_scores()
        return {name: 100 * (before[name][0] - after[name][0]) for name in before if name in after}

    @property
    def lost(self) -> float:
        """Points of mIoU lost, the mean over images; negative: gained; not-a-number where nothing has a score."""
        return fmean(self.differences.values()) if self.differences else math.nan

    @property
    def error(self) -> float | None:
        """Standard error of the mean over the paired images; None for fewer than two."""
        values = list(self.differences.values())
        return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers with their definition, as plain values."""
        scores = {
            name: {"miou": table.miou, "f1": table.f1}
            for name, table in (("before", self.before), ("after", self.after))
        }
        numbers = {"points_lost": self.lost, "standard_error": self.error, "images": len(self.differences), **scores}
        return {"data": self.title, **_plain(numbers), "definition": DEFINITION}

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.2f}"
        return (
            f"Forgetting: on {self.title}, {abs(self.lost):.2f}{error} points of mIoU "
            f"{'gained' if self.lost < 0 else 'lost'} ({100 * self.before.miou:.2f} % before tuning, "
            f"{100 * self.after.miou:.2f} % after; tight boxes, {count(len(self.differences), 'image')}, paired)."
        )


def forgetting_of(folder: RunFolder, dataset: Any, after: ScoreTable) -> Forgetting | None:
    """Return what a run lost on the other set; None where the run made no scores of it before the first step.

    Raises:
        RunFolderError: The table of before is damaged, or of other images.
    """
    before = scores_also_before(folder)
    if before is None:
        return None
    try:
        return Forgetting(title_of(dataset), before, after)
    except ValueError as error:
        raise RunFolderError(f"{folder.also_before}: {error} Start again with --overwrite.") from error


def scores_also_before(folder: RunFolder) -> ScoreTable | None:
    """Return the table of the other set before the first step, or None where a run did not make one.

    Raises:
        RunFolderError: The file is damaged.
    """
    return read_scores(folder.also_before)


def write_also(folder: RunFolder, after: ScoreTable, forgetting: Forgetting | None) -> None:
    """Write `scores_also.csv` and, where there are scores of before, `forgetting.json`; each whole or not at all."""
    after.to_csv(folder.also_after)
    if forgetting is not None:
        write_text(folder.forgetting, json.dumps(forgetting.to_json(), indent=2, ensure_ascii=False) + "\n")


def title_of(dataset: Any) -> str:
    """Return the name of a data set's folder with the split, or of its class."""
    root, split = getattr(dataset, "root", None), getattr(dataset, "split", None)
    name = Path(root).resolve().name if root is not None else type(dataset).__name__
    return f"{name} ({split})" if split else name


def _plain(value: Any) -> Any:
    """Put null for a mean over nothing, as JSON has no other word for it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
