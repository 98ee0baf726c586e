"""Confusion counts of a predicted mask against its instance: what every score is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from samparser.data.sample import Sample


@dataclass(frozen=True)
class InstanceScore:
    """Pixel counts of one predicted mask against one instance, at original image size, void pixels left out.

    Counts are kept, not ratios, so that every average can be formed afterwards, and formed exactly.

    Attributes:
        image: Name of the image, unique in the data set.
        instance: Name of the instance, unique in the image.
        class_id: Class of the instance.
        area: Pixels of the true mask.
        predicted_area: Pixels of the predicted mask.
        intersection: Pixels of both.
        volume: The case that the image is a slice of, if it is one.
    """

    image: str
    instance: str
    class_id: int
    area: int
    predicted_area: int
    intersection: int
    volume: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.intersection <= min(self.area, self.predicted_area):
            raise ValueError(
                f"Impossible counts for instance {self.instance} of {self.image}: intersection {self.intersection}, "
                f"area {self.area}, predicted area {self.predicted_area}. The intersection is part of both areas."
            )

    @property
    def union(self) -> int:
        """Pixels of either mask."""
        return self.area + self.predicted_area - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; not-a-number when both masks are empty."""
        return self.intersection / self.union if self.union else float("nan")

    @property
    def f1(self) -> float:
        """F1 of the pixels, which is Dice: 2 |A and B| / (|A| + |B|); not-a-number when both masks are empty."""
        total = self.area + self.predicted_area
        return 2 * self.intersection / total if total else float("nan")


def score_instances(sample: Sample, predicted_masks: np.ndarray | Sequence[np.ndarray]) -> list[InstanceScore]:
    """Score one predicted mask per instance of a sample.

    Args:
        sample: Image with its instances, at original size.
        predicted_masks: bool (N, H, W) in the sample's original frame, in the order of `sample.instances`.

    Raises:
        ValueError: Number or size of the masks is not that of the sample, or the masks are not bool.
    """
    height, width = sample.size
    if len(predicted_masks) != len(sample.instances):
        raise ValueError(
            f"{sample.name} has {len(sample.instances)} instances but {len(predicted_masks)} predicted masks; "
            "give one mask per instance, in the order of sample.instances."
        )
    rows = []
    for instance, predicted in zip(sample.instances, predicted_masks, strict=True):
        if predicted.shape != (height, width) or predicted.dtype != np.bool_:
            raise ValueError(
                f"The mask predicted for instance {instance.id} of {sample.name} is {predicted.dtype} of shape "
                f"{predicted.shape}; scoring needs bool of the original size {(height, width)}. predict() gives that; "
                "The model's own pred_masks are logits, smaller than its input."
            )
        x0, y0, x1, y1 = instance.box
        truth, inside = instance.mask, predicted[y0:y1, x0:x1]
        if sample.void is not None:
            truth = truth & ~sample.void[y0:y1, x0:x1]
            predicted = predicted & ~sample.void
        rows.append(
            InstanceScore(
                image=sample.name,
                instance=str(instance.id),
                class_id=int(instance.class_id),
                area=int(np.count_nonzero(truth)),
                predicted_area=int(np.count_nonzero(predicted)),
                intersection=int(np.count_nonzero(truth & inside)),
                volume=sample.volume,
            )
        )
    return rows
