"""Scores of the model before its first step, so that every run says whether tuning helped."""

from __future__ import annotations

import csv
import math
import textwrap
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from samparser._untrusted import read_json
from samparser.scoring.table import ScoreTable

from .run_folder import RunFolder, RunFolderError

ADVICE = (
    "Tuning made the masks worse. The usual reasons: a learning rate that is too high (watch the loss in the curves); "
    "too few images; box jitter that is large for the objects (--jitter_max_fraction 0.1); labels that differ between "
    "the splits (`samparser data check` draws both). The base model is the better one here."
)


class ScoreBefore(TrainerCallback):
    """Score all validation images when a run begins at its first step, and keep the table in the run folder.

    Attributes:
        trainer: The trainer that the callback belongs to; set once it exists.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score and log; a resumed run that is past its first step has the table already."""
        if state.global_step > 0:
            return
        trainer = self.trainer
        table = trainer.score(trainer.eval_dataset, tuned=False)
        if state.is_world_process_zero:
            table.to_json(self.folder.scores_before.with_suffix(".json"))
            table.to_csv(self.folder.scores_before)
        trainer.log({"before_miou": table.miou, "before_f1": table.f1})


def scores_before(folder: RunFolder) -> ScoreTable | None:
    """Return the table of the model before its first step, or None where a run did not make one.

    Raises:
        RunFolderError: A file of it is damaged.
    """
    return read_scores(folder.scores_before)


def read_scores(path: Path) -> ScoreTable | None:
    """Return a table of scores before tuning, or None where there is none.

    Raises:
        RunFolderError: A file of it is damaged.
    """
    if not path.is_file():
        return None
    try:
        table = ScoreTable.from_csv(path)
        path = path.with_suffix(".json")
        definitions = read_json(path)["definitions"] if path.is_file() else {}
        table.prompt, table.masks = (definitions.get(word) for word in ("prompt", "masks"))
        return table
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise RunFolderError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it to go on without the scores before tuning."
        ) from error


def verdict(before: ScoreTable, after: ScoreTable) -> str:
    """Return both scores and their difference as text; if tuning made the masks worse, what to look at.

    Where the one is of other masks than the other, it says of which.
    """
    lines = [f"{'':<22}{'mIoU %':>8}{'F1 %':>8}"]
    for title, table in (("before tuning", before), ("after tuning", after)):
        lines.append(f"{title:<22}{100 * table.miou:>8.2f}{100 * table.f1:>8.2f}")
    gain = after.miou - before.miou
    lines.append(f"{'difference':<22}{100 * gain:>+8.2f}{100 * (after.f1 - before.f1):>+8.2f}")
    if before.masks != after.masks and before.masks is not None:
        for title, table in (("before", before), ("after", after)):
            lines += textwrap.wrap(f"masks {title}: {table.masks}", width=100, subsequent_indent="  ")
    if not math.isnan(gain) and gain < 0:
        lines += ["", *textwrap.wrap(ADVICE, width=100)]
    return "\n".join(lines)
