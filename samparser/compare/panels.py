"""Which images and rows of an experiment are drawn: the field `panels` of an experiment file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .strict import ExperimentError, refuse_unknown


@dataclass(frozen=True)
class Panels:
    """A figure beside the table: image, ground truth, and what some rows predict.

    Attributes:
        rows: Names of the rows to draw, from left to right.
        images: Test images of each data set, drawn by `seed` and by nothing else: scores take no part.
        seed: Of the draw.
    """

    rows: list[str]
    images: int = 1
    seed: int = 0

    def check(self, labels: Sequence[tuple[str, str]], where: str) -> None:
        """Makes sure that the panels can be drawn.

        Args:
            labels: Name and label of each row of the experiment.
            where: Place in the file, for messages.

        Raises:
            ExperimentError: No or an unknown row, two panels with one heading, or no image.
        """
        refuse_unknown(self.rows, [name for name, _ in labels], f"{where}.rows", "row")
        titles = [label for name, label in labels if name in self.rows]
        if not self.rows or len(set(self.rows)) < len(self.rows) or len(set(titles)) < len(titles):
            raise ExperimentError(f"{where}.rows must be rows with different labels, at least one; got {self.rows}.")
        if self.images < 1:
            raise ExperimentError(f"{where}.images is {self.images}; it must be at least 1.")
