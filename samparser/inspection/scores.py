"""Scores of models that are inspected: mean and standard error over images, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from samparser.features import FeatureCache
from samparser.scoring import ScoreTable
from samparser.training import EvalSettings, evaluate

if TYPE_CHECKING:
    from samparser.data import Sample


@dataclass(frozen=True)
class Score:
    """mIoU and F1 (= Dice), each from 0 to 1, with the standard error of their mean over images; nan for one image."""

    miou: float
    f1: float
    miou_error: float
    f1_error: float
    images: int

    def __str__(self) -> str:
        return f"mIoU {percent(self.miou, self.miou_error)}   F1 {percent(self.f1, self.f1_error)}"

    def plain(self) -> dict[str, float | int | None]:
        """Give the fields for JSON, null in the place of nan."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Evaluation:
    """What scores are made with: the data and how each instance is prompted.

    Args:
        processor: The model's processor, or that of a feature cache.
        dataset: Samples with instances.
        settings: How instances are prompted; None for tight boxes.
        limit: Score the first so many images only.
        progress: Show a progress bar for each pass over the images.
    """

    processor: Any
    dataset: Sequence[Sample]
    settings: EvalSettings | None = None
    limit: int | None = None
    progress: bool = True

    def table(self, model: nn.Module) -> ScoreTable:
        """Score a model as it stands; its masks are those of the head that tuning trains, at every scale."""
        return evaluate(
            model,
            self.processor,
            self.dataset,
            self.settings,
            limit=self.limit,
            tuned=True,
            progress=self.progress,
        )


def score_of(table: ScoreTable) -> Score:
    """Take the mean over images with its standard error, the deviation over images by the root of their number."""
    images = list(table.image_scores().values())
    ious, f1s = [iou for iou, _ in images], [f1 for _, f1 in images]
    return Score(table.miou, table.f1, _error(ious), _error(f1s), len(images))


def difference(mine: ScoreTable, theirs: ScoreTable) -> Score:
    """Subtract the scores of the same images: mean difference and its standard error over images.

    Raises:
        ValueError: The tables are of different images.
    """
    first, second = mine.image_scores(), theirs.image_scores()
    if set(first) != set(second):
        raise ValueError(f"The tables are of different images: {len(first)} and {len(second)}, paired by name.")
    ious = [first[name][0] - second[name][0] for name in first]
    f1s = [first[name][1] - second[name][1] for name in first]
    miou, f1 = (fmean(values) if values else math.nan for values in (ious, f1s))
    return Score(miou, f1, _error(ious), _error(f1s), len(ious))


def percent(value: float, error: float, *, signed: bool = False) -> str:
    """Write a score in percent with its error.

    >>> percent(0.8125, 0.012), percent(0.004, float("nan"), signed=True)
    ('81.25 ± 1.20', '+0.40')
    """
    text = f"{100 * value:{'+' if signed else ''}.2f}"
    return text if math.isnan(error) else f"{text} ± {100 * error:.2f}"


@contextmanager
def from_features(evaluation: Evaluation, model: nn.Module, cache: str | None) -> Iterator[Evaluation]:
    """Encode each image once for all scores inside the block, where nothing before the neck is adapted.

    Args:
        evaluation: What is scored.
        model: The model with its adapters.
        cache: The folder for features; None encodes the images anew for each score.

    Raises:
        ValueError: An adapter changes something before the neck.
    """
    if cache is None:
        yield evaluation
        return
    images = evaluation.dataset
    count = min(len(images), evaluation.limit or len(images))
    store = FeatureCache(cache, model, evaluation.processor, dtype=torch.float32)
    store.fill([images[index] for index in range(count)], progress=evaluation.progress)
    with store.feeding() as processor:
        yield Evaluation(processor, images, evaluation.settings, evaluation.limit, evaluation.progress)


def _error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
