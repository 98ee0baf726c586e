"""Task arithmetic: sums and differences of adapters, which are exact, with their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from samparser._files import filling_folder
from samparser.methods.card import write_card
from samparser.prediction.shared_encoder import using_adapter

from .scores import Evaluation, Score, difference, percent, score_of

_NAME = "combination"


@dataclass(frozen=True)
class Combination:
    """A weighted sum of adapters, with its score and the paired difference to the base model's."""

    weights: dict[str, float]
    score: Score
    gain: Score

    @property
    def formula(self) -> str:
        """The sum in words."""
        return formula(self.weights)


def formula(weights: Mapping[str, float]) -> str:
    """Write a weighted sum.

    >>> formula({"nuclei": 1.0, "ships": -1.0}), formula({"a": 0.5})
    ('nuclei - ships', '0.5 a')
    """
    text = ""
    for name, weight in weights.items():
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        sign = ("-" if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += f"{sign}{size}{name}"
    return text


def sums_and_differences(adapters: Sequence[str]) -> list[dict[str, float]]:
    """List each adapter by itself, then the sum and the difference of each pair."""
    singles = [{name: 1.0} for name in adapters]
    return singles + [{a: 1.0, b: sign} for a, b in combinations(adapters, 2) for sign in (1.0, -1.0)]


@contextmanager
def combined(model: Any, weights: Mapping[str, float]) -> Iterator[str]:
    """Make an adapter whose change is the weighted sum of others' inside the block, and make it the active one.

    Yields:
        The adapter's name.

    Raises:
        ValueError: The adapters have no such sum; see `SVDCoefficientModel.add_weighted_adapter`.
    """
    name = _NAME
    while name in model.peft_config:
        name += "_"
    model.add_weighted_adapter(list(weights), list(weights.values()), name)
    try:
        with using_adapter(model, name):
            yield name
    finally:
        model.delete_adapter(name)


def combine(model: Any, combinations: Sequence[Mapping[str, float]], evaluation: Evaluation) -> list[Combination]:
    """Score weighted sums of adapters, each beside the base model on the same images.

    Args:
        model: A PeftModel with the adapters; afterwards as it was.
        combinations: For each sum the weights by the adapters' names.
        evaluation: What is scored, and how.

    Raises:
        ValueError: Adapters have no such sum.
    """
    with using_adapter(model, None):
        base = evaluation.table(model)
    scored = [Combination({}, score_of(base), difference(base, base))]
    for weights in combinations:
        with combined(model, weights):
            table = evaluation.table(model)
        scored.append(Combination(dict(weights), score_of(table), difference(table, base)))
    return scored


def combinations_table(scored: Sequence[Combination]) -> str:
    """Write a line for each sum."""
    titles = [one.formula or "base model" for one in scored]
    width = max(map(len, titles))
    lines = [f"{'':{width}}  {'mIoU %':>15}  {'F1 %':>15}  mIoU gained over the base"]
    for title, one in zip(titles, scored, strict=True):
        scores = percent(one.score.miou, one.score.miou_error), percent(one.score.f1, one.score.f1_error)
        gained = percent(one.gain.miou, one.gain.miou_error, signed=True) if one.weights else ""
        lines.append(f"{title:{width}}  {scores[0]:>15}  {scores[1]:>15}  {gained}".rstrip())
    return "\n".join(lines)


def save_combination(model: Any, weights: Mapping[str, float], folder: str | Path) -> None:
    """Write the weighted sum of adapters as an adapter folder, which `load_model` opens like any other.

    Raises:
        ValueError: The adapters have no such sum.
    """
    with combined(model, weights) as name:
        save_one(model, name, folder)


def save_one(model: Any, adapter: str, folder: str | Path) -> None:
    """Write one adapter of a model as a folder of its own, whole or not at all; other files of the folder stay."""
    with filling_folder(folder) as stage:
        model.save_pretrained(stage, selected_adapters=[adapter], save_embedding_layers=False)
        if adapter != "default":  # PEFT writes all others one folder deeper.
            for file in (stage / adapter).iterdir():
                file.rename(stage / file.name)
            (stage / adapter).rmdir()
        write_card(stage)
