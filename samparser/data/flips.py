"""Mirrored samples: image, masks, boxes and void pixels alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .sample import Sample


def flip_sample(sample: Sample) -> Sample:
    """Return the sample mirrored left to right; its name stays."""
    width = sample.size[1]
    instances = tuple(
        replace(
            instance,
            box=(width - instance.box[2], instance.box[1], width - instance.box[0], instance.box[3]),
            mask=_mirrored(instance.mask),
        )
        for instance in sample.instances
    )
    void = None if sample.void is None else _mirrored(sample.void)
    return replace(sample, image=_mirrored(sample.image), instances=instances, void=void)


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[:, ::-1])


class Flipped(Sequence[Sample]):
    """Every sample of a data set mirrored."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return flip_sample(self.dataset[index])


class RandomlyFlipped(Sequence[Sample]):
    """Each sample as it is or mirrored, with equal chances, a function of (seed, epoch, index) alone.

    Attributes that it lacks, such as `names` and `classes`, are the data set's.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self.dataset[index]
        # The third number keeps this draw apart from that of the prompts, which is seeded with (seed, epoch, index).
        mirrored = np.random.default_rng([self.seed, self.epoch, index % len(self), 1]).random() < 0.5
        return flip_sample(sample) if mirrored else sample

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)
